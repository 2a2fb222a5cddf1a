"""Frozen audio encoders: waveforms in, frames out, the same in any batch.

An encoder of this file never trains and is never in train mode, and the
frames of an utterance do not depend on what else is in its batch: they may be
computed once, stored, and used in any other batch.
"""

import math
import uuid
from pathlib import Path

import torch
from safetensors import SafetensorError
from speechbrain.dataio.dataio import length_to_mask
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

from emoq_modules.errors import BackboneError
from emoq_modules.lobes.backbones import fingerprint, local_folder


class FrozenEncoder(nn.Module):
    """Base class of the frozen audio encoders.

    A subclass computes frames in ``encode``; here what it is made of is frozen,
    lengths become counts, and counts become lengths again.

    Arguments
    ---------
    dim : int
        Size of a frame.
    identity : dict
        Plain values, of which a feature store makes its key: with the same
        identity the same audio gives the same frames.
    """

    sample_rate = 16000
    # Seconds from one frame to the next: frame k stands for those from
    # k * hop_s on. None where a "frame" is a layer and no instant.
    hop_s = None
    # How many layers there are where each is a "frame".
    num_layers = None

    def __init__(self, dim, identity):
        super().__init__()
        self.dim = dim
        self.identity = identity
        super().train(False)

    def __setattr__(self, name, value):
        """Sets an attribute; a part with weights is frozen before."""
        if isinstance(value, nn.Module):
            value.eval()
        if isinstance(value, nn.Module | nn.Parameter):
            value.requires_grad_(False)
        super().__setattr__(name, value)

    def encode(self, wavs, samples):
        """Computes the frames of each utterance.

        Arguments
        ---------
        wavs : torch.Tensor
            Waveforms at 16 kHz, ``(B, T)``, float32, zero past their ends.
        samples : list of int
            Length of each in samples, at least 1.

        Returns
        -------
        list of torch.Tensor
            Frames ``(T', dim)`` of each, at least one.
        """
        raise NotImplementedError

    def forward(self, wavs, wav_lens):
        """Computes the frames of a batch.

        Arguments
        ---------
        wavs : torch.Tensor
            Waveforms at 16 kHz, ``(B, T)``, in [-1, 1]; a ``ValueError`` if one
            has no sample, or samples that are not finite.
        wav_lens : torch.Tensor
            Relative lengths, ``(B,)``.

        Returns
        -------
        frames : torch.Tensor
            ``(B, T', dim)``, float32, zero past the end of each utterance.
        frame_lens : torch.Tensor
            Relative lengths, ``(B,)``.
        """
        counts = (wav_lens * wavs.shape[1]).round().long()
        samples = counts.tolist()
        wavs = wavs[:, : max(samples)].float()
        inside = length_to_mask(counts, wavs.shape[1], device=wavs.device)
        wavs = wavs.masked_fill(inside == 0, 0.0)
        sound = torch.isfinite(wavs).all(dim=1).tolist()
        for index, count in enumerate(samples):
            if not count or not sound[index]:
                fault = "holds NaN or infinity" if count else "has 0 samples"
                raise ValueError(
                    f"Utterance {index} of the batch {fault}; leave it out of "
                    "the corpus."
                )
        # Whatever precision the model around it trains in, an encoder works
        # in its own: stored frames are computed outside of any training.
        with torch.no_grad(), torch.autocast(wavs.device.type, enabled=False):
            frames = self.encode(wavs, samples)
        counts = torch.tensor([len(f) for f in frames], device=wavs.device)
        return pad_sequence(frames, batch_first=True), counts / counts.max()

    def train(self, mode=True):
        """Stays in eval mode: ``Brain`` calls this on all its modules.

        Arguments
        ---------
        mode : bool
            Without effect.

        Returns
        -------
        FrozenEncoder
            The encoder itself.
        """
        return super().train(False)


class HuggingFaceEncoder(FrozenEncoder):
    """HuBERT, WavLM or wav2vec 2.0, from Hugging Face.

    SpeechBrain's wrappers normalize the waveforms of a batch with their
    padding. Here each is normalized by itself, and models whose first
    convolution is normalized over time (HuBERT-base, for one) take the
    utterances one by one.

    Arguments
    ---------
    source : str | dict
        Name on the Hugging Face hub, or a local folder with the weights and
        ``preprocessor_config.json``; or the values of a configuration, with
        ``model_type``, which gives random weights.
    layer : int
        Whose output to take: -1 the model's output, k > 0 the k-th transformer
        layer's (those above are dropped), 0 what the first layer gets.
    revision : str | None
        Branch, tag or commit on the hub.
    save_path : str | None
        Where downloads are kept; None is Hugging Face's own cache.
    precision : str
        What to compute in: fp32, or bf16, for which GPUs have more arithmetic,
        and which rounds more than a store of half precision does.

    Raises
    ------
    BackboneError
        If the source is not to be had, of another family, or lacks weights.
    ValueError
        If there is no such layer or precision.

    Example
    -------
    >>> hubert = {"model_type": "hubert", "hidden_size": 32}
    >>> hubert |= {"num_hidden_layers": 2, "num_attention_heads": 4}
    >>> hubert |= {"intermediate_size": 64, "conv_dim": [32] * 7}
    >>> encoder = HuggingFaceEncoder(hubert)
    >>> frames, lens = encoder(torch.rand(2, 16000), torch.tensor([1.0, 0.5]))
    >>> frames.shape
    torch.Size([2, 49, 32])
    >>> [round(count) for count in (49 * lens).tolist()]
    [49, 24]
    """

    def __init__(
        self,
        source,
        layer=-1,
        revision=None,
        save_path=None,
        precision="fp32",
    ):
        if precision not in _DTYPES:
            raise ValueError(
                f"The precision of an audio encoder is {' or '.join(_DTYPES)}; "
                f"it is {precision!r}."
            )
        if isinstance(source, dict):
            model, do_normalize, origin = _build(source)
        else:
            model, do_normalize, origin = _load(source, revision, save_path)
        config = model.config
        if not -1 <= layer <= config.num_hidden_layers:
            raise ValueError(
                f"There is no layer {layer} in {origin['source']}: it has "
                f"{config.num_hidden_layers}. -1 is the model's output."
            )
        identity = {"class": type(self).__name__, "version": 2, **origin}
        if precision != "fp32":
            identity["precision"] = precision
        super().__init__(config.hidden_size, {**identity, "layer": layer})
        if layer >= 0:
            model.encoder.layers = model.encoder.layers[:layer]
            if config.do_stable_layer_norm:  # it follows the last layer
                model.encoder.layer_norm = nn.Identity()
        self.model = model.to(_DTYPES[precision])
        self.do_normalize = do_normalize
        # A group norm's statistics run over time, so also over padding.
        self.one_by_one = config.feat_extract_norm == "group"
        self.hop_s = math.prod(config.conv_stride) / self.sample_rate
        # Samples that one frame is made of: 25 ms.
        self.receptive_field = 1
        sizes = zip(config.conv_kernel, config.conv_stride, strict=True)
        for kernel, stride in reversed([*sizes]):
            self.receptive_field = (self.receptive_field - 1) * stride + kernel

    def encode(self, wavs, samples):
        """Computes frames, one every 20 ms.

        Arguments
        ---------
        wavs : torch.Tensor
            Waveforms at 16 kHz, ``(B, T)``, float32, zero past their ends.
            Those shorter than a frame's 25 ms are padded.
        samples : list of int
            Length of each in samples, at least 1.

        Returns
        -------
        list of torch.Tensor
            Frames ``(T', dim)`` of each, float32, at least one.
        """
        if self.one_by_one and len(samples) > 1:
            return [
                self.encode(wav[None, :count], [count])[0]
                for wav, count in zip(wavs, samples, strict=True)
            ]
        if self.do_normalize:
            wavs = _normalize(wavs, samples)
        shortfall = self.receptive_field - wavs.shape[1]
        wavs = nn.functional.pad(wavs, (0, max(0, shortfall)))
        counts = torch.tensor(samples, device=wavs.device)
        counts = counts.clamp(min=self.receptive_field)
        output = self.model(
            wavs.to(self.model.dtype),
            attention_mask=length_to_mask(counts, wavs.shape[1]),
            output_hidden_states=self.num_layers is not None,
        )
        counts = self.model._get_feat_extract_output_lengths(counts).tolist()
        return self._take(output, counts)

    def _take(self, output, counts):
        """Takes of the model's output what stands for each utterance."""
        frames = output.last_hidden_state.float()  # (B, T', dim)
        return [f[:count] for f, count in zip(frames, counts, strict=True)]


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_FAMILIES = "hubert", "wav2vec2", "wavlm"


def _build(values):
    """Builds a model of random weights."""
    values = dict(values)
    family = values.pop("model_type")
    _check_family(family, "the configuration")
    config = AutoConfig.for_model(family, **values)
    model = AutoModel.from_config(config)
    # No other encoder has these weights, so none shares its features.
    origin = {"source": family, "revision": None, "weights": uuid.uuid4().hex}
    return model, config.feat_extract_norm == "layer", origin


def _load(source, revision, save_path):
    """Loads a model and its weights, all of them."""
    folder = local_folder(
        source,
        revision,
        needs=("config.json", "preprocessor_config.json"),
        cache_dir=save_path,
    )
    _check_family(AutoConfig.from_pretrained(folder).model_type, source)
    try:
        model, report = AutoModel.from_pretrained(
            folder, output_loading_info=True
        )
    except (SafetensorError, RuntimeError) as error:
        raise BackboneError(
            f"The weights in {folder} cannot be loaded ({error}). Delete the "
            f"folder and download {source} again."
        ) from error
    # That weight stands in for masked frames, in pre-training alone.
    missing = set(report["missing_keys"]) - {"masked_spec_embed"}
    if missing:
        raise BackboneError(
            f"{folder} lacks {len(missing)} of the weights that its "
            f"config.json asks for, for one {min(missing)}. It is not the "
            "folder of a pre-trained model."
        )
    is_folder = Path(source).expanduser().is_dir()
    origin = {
        "source": Path(folder).resolve().name if is_folder else source,
        # The cache names a folder by the commit that the revision stands for.
        "revision": None if is_folder else Path(folder).name,
        "weights": fingerprint(folder),
    }
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    return model, extractor.do_normalize, origin


def _check_family(family, source):
    if family not in _FAMILIES:
        raise BackboneError(
            f"{source} is of the family {family!r}; HuggingFaceEncoder knows "
            f"{', '.join(_FAMILIES)}."
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
