"""EmoQ: speech emotion recognition with a speech-aware Q-Former and an LLM.

Public names are imported on first use, so that taking one lobe, say
``from emoq_modules import SupConLoss``, does not import the others.
"""

import re
from importlib import import_module

_PUBLIC = {
    "AttentivePooling": "lobes.pooling",
    "AudioFrames": "lobes.baselines",
    "ClassGroupSampler": "dataio.sampler",
    "EmoQFormer": "lobes.qformer",
    "EmotionRecognizer": "inference.recognizer",
    "EmotionStats": "evaluation.metrics",
    "FbankEncoder": "lobes.fbank",
    "FeatureStore": "dataio.feature_store",
    "FocalLoss": "lobes.losses",
    "HuggingFaceEncoder": "lobes.audio_encoder",
    "LayerMeanEncoder": "lobes.baselines",
    "LayerWeightedMean": "lobes.baselines",
    "MALLoss": "lobes.losses",
    "MeanPooledAudio": "lobes.baselines",
    "PromptTemplate": "lobes.prompt",
    "Recognition": "inference.batching",
    "Recording": "dataio.recordings",
    "SoftPromptDecoder": "lobes.decoder",
    "Stage1Brain": "training.stages",
    "Stage2Brain": "training.stages",
    "SupConLoss": "lobes.losses",
}
# What YAMLs and exports of version 0.1 name by where it was then. Functions
# that have left their module stand before it.
_MOVED = {
    "checkpoints.load_trainable": "lobes.weights.load_trainable",
    "checkpoints.save_trainable": "lobes.weights.save_trainable",
    "dataio.training_labels": "dataio.datasets.training_labels",
    "backbones": "lobes.backbones",
    "checkpoints": "training.checkpoints",
    "decoder_weights": "lobes.weights",
    "losses": "lobes.losses",
    "offline": "lobes.small_backbones",
    "train_loggers": "training.loggers",
}

__all__ = sorted(_PUBLIC)
__version__ = "0.1.0"


def present_names(yaml):
    """A YAML of version 0.1 with the names that its functions have today."""
    for before, now in _MOVED.items():
        name = re.escape(f"{__name__}.{before}")
        yaml = re.sub(rf"\b{name}\b", f"{__name__}.{now}", yaml)
    return yaml


def __getattr__(name):
    # HyperPyYAML asks a package for what it does not find as a module.
    if name in _MOVED:
        return import_module(f"{__name__}.{_MOVED[name]}")
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__():
    return sorted([*globals(), *__all__])
