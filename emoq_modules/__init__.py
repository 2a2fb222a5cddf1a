"""EmoQ: speech emotion recognition with a speech-aware Q-Former and an LLM.

Public names are imported on first use, so that taking one lobe, say
``from emoq_modules import SupConLoss``, does not import the others.
"""

from importlib import import_module

_PUBLIC = {
    "AttentivePooling": "pooling",
    "ClassGroupSampler": "sampler",
    "EmoQFormer": "qformer",
    "EmotionRecognizer": "recognizer",
    "EmotionStats": "metrics",
    "FbankEncoder": "fbank",
    "FeatureStore": "feature_store",
    "FocalLoss": "losses",
    "HuggingFaceEncoder": "audio_encoder",
    "LayerMeanEncoder": "baselines",
    "LayerWeightedMean": "baselines",
    "MALLoss": "losses",
    "MeanPooledAudio": "baselines",
    "PromptTemplate": "prompt",
    "Recognition": "recognition",
    "Recording": "recordings",
    "SoftPromptDecoder": "decoder",
    "Stage1Brain": "stages",
    "Stage2Brain": "stages",
    "SupConLoss": "losses",
}

__all__ = sorted(_PUBLIC)
__version__ = "0.1.0"


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__():
    return sorted([*globals(), *__all__])
