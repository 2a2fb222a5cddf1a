"""From a corpus on disk to batches.

Audio, manifests and what prepare scripts share, the feature store, datasets.
Here lives nothing that trains, and no corpus: those are in ``recipes/``.
"""


def __getattr__(name):
    # Where version 0.1 had it; a name that its YAMLs hold.
    if name != "training_labels":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from emoq_modules.dataio.datasets import training_labels

    return training_labels
