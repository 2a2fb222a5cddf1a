"""Families of audio encoders: how they are loaded, and how sound goes in.

What differs between them is their front end. It makes the model's input of
the waveforms of a batch, as the feature extractor beside the weights does, and
tells how many frames each gives::

    features, mask, counts = front_end(wavs, samples)

``mask`` says which of the features are padding, where the model asks for that.
``hop`` is the distance of frames in samples; ``one_by_one`` says whether a
batch would show in the frames; ``final_norm`` whether a norm follows the last
layer.
"""

import json
import math
import uuid
from pathlib import Path

import torch
from speechbrain.dataio.dataio import length_to_mask
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    AutoModel,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from emoq_modules.errors import BackboneError
from emoq_modules.lobes.backbones import (
    fingerprint,
    load_whole,
    local_folder,
)

_RATE = 16000


class _Waveforms:
    """Convolutions over the waveform, from HuBERT to data2vec."""

    extractor_class = Wav2Vec2FeatureExtractor

    def __init__(self, config, extractor):
        norm = getattr(config, "feat_extract_norm", None)
        # A group norm's statistics run over time, so also over padding; and
        # data2vec, which has no choice of norms, positions frames by several
        # convolutions on end, which carry what lies in the padding back.
        self.one_by_one = norm != "layer"
        self.final_norm = getattr(config, "do_stable_layer_norm", False)
        self.do_normalize = extractor.do_normalize
        self.hop = math.prod(config.conv_stride)
        self.convolutions = [
            *zip(config.conv_kernel, config.conv_stride, strict=True)
        ]
        # Samples that one frame is made of: 25 ms.
        self.receptive_field = 1
        for kernel, stride in reversed(self.convolutions):
            self.receptive_field = (self.receptive_field - 1) * stride + kernel

    @staticmethod
    def settings(config):
        """Of the feature extractor, where a configuration is all there is."""
        norm = getattr(config, "feat_extract_norm", "layer")
        return {"do_normalize": norm == "layer"}

    def __call__(self, wavs, samples):
        if self.do_normalize:
            wavs = _normalize(wavs, samples)
        shortfall = self.receptive_field - wavs.shape[1]
        wavs = nn.functional.pad(wavs, (0, max(0, shortfall)))
        counts = torch.tensor(samples, device=wavs.device)
        counts = counts.clamp(min=self.receptive_field)
        mask = length_to_mask(counts, wavs.shape[1])
        for kernel, stride in self.convolutions:
            counts = (counts - kernel) // stride + 1
        return wavs, mask, counts.tolist()


class _KaldiMel:
    """Log-mel of an utterance's own mean and deviation, for w2v-BERT."""

    extractor_class = SeamlessM4TFeatureExtractor
    one_by_one = False
    final_norm = False

    def __init__(self, config, extractor):
        self.extractor = extractor
        width = extractor.num_mel_bins * extractor.stride
        _expect(width, config.feature_projection_input_dim, "mel values")
        self.hop = 160 * extractor.stride
        self.shortest = 400 + 160 * (extractor.stride - 1)

    @staticmethod
    def settings(config):
        bins = config.feature_projection_input_dim // 2
        return {"feature_size": bins, "num_mel_bins": bins}

    def __call__(self, wavs, samples):
        features = [
            self._features(wav[:count]).to(wavs.device)
            for wav, count in zip(wavs, samples, strict=True)
        ]
        counts = [len(utterance) for utterance in features]
        mask = length_to_mask(torch.tensor(counts, device=wavs.device))
        return pad_sequence(features, batch_first=True), mask, counts

    def _features(self, wav):
        wav = nn.functional.pad(wav, (0, max(0, self.shortest - len(wav))))
        found = self.extractor(
            wav.cpu().numpy(), sampling_rate=_RATE, return_tensors="pt"
        )
        # An odd number of mel frames is padded, for two make one.
        return found.input_features[0][found.attention_mask[0] == 1]


class _WhisperMel:
    """Log-mel of windows of 30 s, the last one filled up with silence.

    Whisper attends to that silence, and its positions know no more than 30 s.
    Windows follow each other without overlap, and each is computed by itself.
    """

    extractor_class = WhisperFeatureExtractor
    one_by_one = True
    final_norm = True

    def __init__(self, config, extractor):
        self.extractor = extractor
        _expect(extractor.feature_size, config.num_mel_bins, "mel filters")
        positions = 2 * config.max_source_positions  # one frame of two
        _expect(extractor.nb_max_frames, positions, "mel frames")
        self.hop = 2 * extractor.hop_length

    @staticmethod
    def settings(config):
        return {
            "feature_size": config.num_mel_bins,
            "chunk_length": config.max_source_positions * 320 // _RATE,
        }

    def __call__(self, wavs, samples):
        (wav,), (count,) = wavs, samples
        windows = wav[:count].cpu().split(self.extractor.n_samples)
        mel = self.extractor(
            [window.numpy() for window in windows],
            sampling_rate=_RATE,
            return_tensors="pt",
        ).input_features
        return mel.to(wav.device), None, [-(-count // self.hop)]


# By transformers' name of the family, the ``model_type`` of its config.json.
_FAMILIES = {
    "data2vec-audio": _Waveforms,
    "hubert": _Waveforms,
    "unispeech": _Waveforms,
    "unispeech-sat": _Waveforms,
    "wav2vec2": _Waveforms,
    "wav2vec2-bert": _KaldiMel,
    "wavlm": _Waveforms,
    "whisper": _WhisperMel,
}
_PREPROCESSOR = "preprocessor_config.json"
# What stands in for masked frames, in pre-training alone; and Whisper's other
# half.
_NOT_NEEDED = "masked_spec_embed", "decoder."


def load_audio_model(source, revision=None, save_path=None):
    """Loads an audio encoder's model, with all its weights, in float32.

    Arguments
    ---------
    source : str | dict
        Name on the Hugging Face hub, a local folder, or the values of a
        configuration, with ``model_type``, which gives random weights.
    revision : str | None
        Branch, tag or commit on the hub.
    save_path : str | None
        Where downloads are kept; None is Hugging Face's own cache.

    Returns
    -------
    model : transformers.PreTrainedModel
        The model; of Whisper the encoder.
    front_end : callable
        What makes its input, as above.
    origin : dict
        Where the weights come from, for the encoder's identity.

    Raises
    ------
    BackboneError
        If the source is not to be had, not whole, or of another family.

    Example
    -------
    >>> wavlm = {"model_type": "wavlm", "hidden_size": 32, "conv_dim": [8] * 7}
    >>> wavlm |= {"num_hidden_layers": 1, "num_attention_heads": 4}
    >>> model, front_end, _ = load_audio_model(wavlm)
    >>> features, _, counts = front_end(torch.rand(1, 16000), [16000])
    >>> model(features).last_hidden_state.shape, counts
    (torch.Size([1, 49, 32]), [49])
    """
    if isinstance(source, dict):
        config = load_audio_configuration(source)
        kind = _FAMILIES[config.model_type]
        settings = kind.settings(config)
        model = AutoModel.from_config(config)
        # No other encoder has these weights, so none shares its features.
        origin = {"source": config.model_type, "revision": None}
        origin["weights"] = uuid.uuid4().hex
    else:
        folder = local_folder(
            source,
            revision,
            needs=("config.json", _PREPROCESSOR),
            cache_dir=save_path,
        )
        config = load_audio_configuration(folder)
        kind = _FAMILIES[config.model_type]
        settings = _read_json(folder, _PREPROCESSOR)
        model = load_whole(
            folder,
            _NOT_NEEDED,
            config=config,
            dtype=torch.float32,  # and not what they are stored in
        )
        is_folder = Path(source).expanduser().is_dir()
        origin = {
            "source": Path(folder).resolve().name if is_folder else source,
            # The cache names a folder by the commit of the revision.
            "revision": None if is_folder else Path(folder).name,
            "weights": fingerprint(folder),
        }
    extractor = kind.extractor_class.from_dict(settings)
    _expect(extractor.sampling_rate, _RATE, "samples a second")
    front_end = kind(config, extractor)
    # A model that is more than an encoder is one with a decoder.
    model = model.encoder if config.is_encoder_decoder else model
    return model, front_end, origin


def load_audio_configuration(source, revision=None):
    """Loads an audio encoder's configuration, and nothing else.

    Arguments
    ---------
    source : str | dict
        As of ``load_audio_model``.
    revision : str | None
        Branch, tag or commit on the hub.

    Returns
    -------
    transformers.PretrainedConfig
        The configuration; a ``BackboneError`` if it is not to be had, or not
        that of an audio encoder of a known family.

    Example
    -------
    >>> load_audio_configuration({"model_type": "wavlm"}).num_hidden_layers
    12
    """
    if isinstance(source, dict):
        values, name = dict(source), "the configuration"
    else:
        name = local_folder(source, revision, False)
        values = _read_json(name, "config.json")
    family = values.pop("model_type", None)
    if family not in _FAMILIES:
        raise BackboneError(
            f"{name} is of the family {family!r}, which is no audio encoder "
            f"that HuggingFaceEncoder knows: {', '.join(_FAMILIES)}."
        )
    if isinstance(source, dict):
        config = AutoConfig.for_model(family, **values)
    else:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    # What follows the layers there has another rate of frames.
    config.add_adapter = config.use_intermediate_ffn_before_adapter = False
    return config


def _read_json(folder, name):
    path = Path(folder, name)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BackboneError(
            f"{path} is no JSON ({error}). Restore the folder, or get the "
            "model again."
        ) from None


def _expect(found, wanted, what):
    if found != wanted:
        raise BackboneError(
            f"The {_PREPROCESSOR} of the audio encoder gives {found} {what}, "
            f"and {wanted} are wanted: take the one that was published with "
            "the weights."
        )


def _normalize(wavs, samples):
    """Gives each waveform zero mean and unit variance, and leaves padding 0.

    As Hugging Face's feature extractors do, their epsilon included.
    """
    return pad_sequence(
        [
            (wav[:count] - wav[:count].mean())
            / (wav[:count].var(correction=0) + 1e-7).sqrt()
            for wav, count in zip(wavs, samples, strict=True)
        ],
        batch_first=True,
    )
