"""EmoQ: speech emotion recognition with a speech-aware Q-Former and an LLM.

Public names are imported on first use, so that taking one lobe, say
``from emoq_modules import SupConLoss``, does not import the others.
"""

from importlib import import_module

_PUBLIC = {
    "AttentivePooling": "lobes.pooling",
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
# Modules that YAMLs and exports of version 0.1 name by where they were then:
# HyperPyYAML asks a package for what it does not find as a module.
MOVED = {
    "backbones": "lobes.backbones",
    "checkpoints": "training.checkpoints",
    "decoder_weights": "lobes.weights",
    "losses": "lobes.losses",
    "offline": "lobes.small_backbones",
    "train_loggers": "training.loggers",
}

__all__ = sorted(_PUBLIC)
__version__ = "0.1.0"


def __getattr__(name):
    if name in MOVED:
        return import_module(f"{__name__}.{MOVED[name]}")
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__():
    return sorted([*globals(), *__all__])
