"""Frozen audio encoders: waveforms in, frames out, the same in any company.

An encoder of this file never trains and is never in train mode, and the
frames of an utterance do not depend on what else is in its batch: they may be
computed once, stored, and used in any other batch.
"""

import uuid
from pathlib import Path

import torch
from safetensors import SafetensorError
from speechbrain.integrations.huggingface.hubert import HuBERT
from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2
from speechbrain.integrations.huggingface.wavlm import WavLM
from speechbrain.lobes.features import Fbank
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModel

from emoq_modules.audio_files import SAMPLE_RATE
from emoq_modules.backbones import (
    BackboneError,
    check_complete,
    fingerprint,
    local_folder,
)


class FrozenEncoder(nn.Module):
    """What all frozen encoders have in common.

    A subclass computes frames in ``encode``; here its parameters are frozen,
    lengths become counts, and counts become lengths again.

    Arguments
    ---------
    dim : int
        Size of a frame.
    identity : dict
        Plain values that determine the frames: with the same identity the
        same audio gives the same frames. A feature store is keyed by it.
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, dim, identity):
        super().__init__()
        self.dim = dim
        self.identity = identity
        super().train(False)

    def encode(self, wavs, samples):
        """Computes the frames of each utterance.

        Arguments
        ---------
        wavs : torch.Tensor
            Waveforms, ``(B, T)``, float32, zero past their ends.
        samples : list of int
            Length of each, at least 1.

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
            Waveforms at 16 kHz, ``(B, T)``, in [-1, 1].
        wav_lens : torch.Tensor
            Relative lengths, ``(B,)``.

        Returns
        -------
        frames : torch.Tensor
            ``(B, T', dim)``, float32, zero past the end of each utterance.
        frame_lens : torch.Tensor
            Relative lengths, ``(B,)``.

        Raises
        ------
        ValueError
            If an utterance has no sample, or samples that are not finite.
        """
        samples = (wav_lens * wavs.shape[1]).round().long().tolist()
        wavs = wavs[:, : max(samples)].float()
        past = torch.arange(wavs.shape[1], device=wavs.device) >= torch.tensor(
            samples, device=wavs.device
        ).unsqueeze(1)
        wavs = wavs.masked_fill(past, 0.0)
        sound = torch.isfinite(wavs).all(dim=1).tolist()
        for index, (count, is_sound) in enumerate(
            zip(samples, sound, strict=True)
        ):
            if not count or not is_sound:
                raise ValueError(
                    f"Utterance {index} of the batch "
                    + ("holds NaN or infinity" if count else "has 0 samples")
                    + "; leave it out of the corpus."
                )
        # Whatever precision the model around it trains in, an encoder works
        # in its own: stored frames are computed outside of any training.
        with torch.no_grad(), torch.autocast(wavs.device.type, enabled=False):
            frames = self.encode(wavs, samples)
        counts = torch.tensor([len(f) for f in frames], device=wavs.device)
        return pad_sequence(frames, batch_first=True), counts / counts.max()

    def train(self, mode=True):
        """Stays in eval mode: ``Brain`` calls this on all its modules."""
        return super().train(False)


class HuggingFaceEncoder(FrozenEncoder):
    """HuBERT, WavLM or wav2vec 2.0, from Hugging Face through SpeechBrain.

    Of SpeechBrain's wrapper the loading is used and not the ``forward``, which
    normalises the waveforms of a batch with their padding. Here each is
    normalised by itself, and models whose first convolution is normalised over
    time (HuBERT-base, for one) take the utterances one by one.

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

    Raises
    ------
    BackboneError
        If the source is neither a folder, nor cached, nor reachable; if it is
        of another family; if weights are missing in it.
    ValueError
        If there is no such layer.

    Example
    -------
    >>> encoder = HuggingFaceEncoder(
    ...     {
    ...         "model_type": "hubert",
    ...         "hidden_size": 32,
    ...         "num_hidden_layers": 2,
    ...         "num_attention_heads": 4,
    ...         "intermediate_size": 64,
    ...         "conv_dim": [32] * 7,
    ...     }
    ... )
    >>> frames, lens = encoder(torch.rand(2, 16000), torch.tensor([1.0, 0.5]))
    >>> frames.shape
    torch.Size([2, 49, 32])
    >>> [round(count) for count in (49 * lens).tolist()]
    [49, 24]
    """

    def __init__(self, source, layer=-1, revision=None, save_path=None):
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
        identity = {"class": type(self).__name__, "version": 1, **origin}
        super().__init__(config.hidden_size, {**identity, "layer": layer})
        if layer >= 0:
            model.encoder.layers = model.encoder.layers[:layer]
            if config.do_stable_layer_norm:  # it follows the last layer
                model.encoder.layer_norm = nn.Identity()
        self.model = model.float().requires_grad_(False).eval()
        self.do_normalize = do_normalize
        # A group norm's statistics run over time, so also over padding.
        self.one_by_one = config.feat_extract_norm == "group"
        # Samples that one frame is made of: 25 ms.
        self.receptive_field = 1
        for kernel, stride in zip(
            reversed(config.conv_kernel),
            reversed(config.conv_stride),
            strict=True,
        ):
            self.receptive_field = (self.receptive_field - 1) * stride + kernel

    def encode(self, wavs, samples):
        """Computes frames of 20 ms; what is shorter than one is padded."""
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
        positions = torch.arange(wavs.shape[1], device=wavs.device)
        frames = self.model(
            wavs, attention_mask=(positions < counts.unsqueeze(1)).long()
        ).last_hidden_state  # (B, T', dim)
        counts = self.model._get_feat_extract_output_lengths(counts).tolist()
        return [f[:count] for f, count in zip(frames, counts, strict=True)]


class FbankEncoder(FrozenEncoder):
    """SpeechBrain's log-mel filter bank, which needs no weights.

    25 ms windows every 10 ms. Utterances are taken one by one: the filter
    bank's floor is relative to the loudest frame, and its derivatives look
    ahead, so that padding would show in the frames.

    Arguments
    ---------
    n_mels : int
        Number of mel filters.
    deltas : bool
        Whether to append first and second derivatives.
    context_frames : int
        Neighbours to append on either side.
    stack : int
        Consecutive frames to join into one, which makes the sequence that
        many times shorter: 4 gives 25 frames a second.
    window : int
        Where above 0, a frame is not joined from its neighbours but describes
        so many of them: mean, deviation and mean absolute change of each
        filter, side by side. How much the spectrum moves tells more of an
        emotion than what it is at an instant.
    normalize : str
        What to do over the frames of each utterance, after a fixed scaling
        that gives speech values around 0 with a deviation around 1: "none",
        "mean" (subtract it) or "mean_std" (divide by the deviation too).

    Raises
    ------
    ValueError
        If ``normalize`` is something else, or a window is 1 or combined with
        derivatives or context.

    Example
    -------
    >>> encoder = FbankEncoder(n_mels=40, stack=4)
    >>> frames, lens = encoder(torch.rand(2, 16000), torch.tensor([1.0, 0.5]))
    >>> frames.shape
    torch.Size([2, 26, 160])
    >>> lens
    tensor([1.0000, 0.5000])
    """

    # Mean and deviations in dB of read speech (EMO-DB), of the filters'
    # output and of its first and second derivative.
    _MEAN_DB = -16.0
    _DEVIATIONS_DB = (17.5, 3.9, 1.6)
    # Of what describes a window, after that scaling: its own mean and
    # deviation, for windows of 0.3 s.
    _WINDOW_MEAN = (0.04, 0.65, 0.26)
    _WINDOW_DEVIATION = (0.69, 0.27, 0.09)

    def __init__(
        self,
        n_mels=80,
        deltas=False,
        context_frames=0,
        stack=1,
        window=0,
        normalize="none",
    ):
        if normalize not in ("none", "mean", "mean_std"):
            raise ValueError(
                f"normalize is {normalize!r}; it can be none, mean or mean_std."
            )
        if window == 1 or window and (deltas or context_frames):
            raise ValueError(
                "A window describes how the filters change over some frames: "
                "give it 2 or more, and neither deltas nor context_frames."
            )
        settings = {
            "n_mels": n_mels,
            "deltas": deltas,
            "context_frames": context_frames,
            "stack": stack,
            "window": window,
            "normalize": normalize,
        }
        streams = 3 if deltas else 1
        values = 3 if window else streams * (stack + 2 * context_frames)
        super().__init__(
            n_mels * values,
            {"class": type(self).__name__, "version": 1, **settings},
        )
        self.context_frames = context_frames
        self.stack = stack
        self.window = window
        self.normalize = normalize
        # With 512 points every one of 80 narrow filters has a bin of its own.
        self.fbank = Fbank(
            deltas=deltas,
            sample_rate=self.sample_rate,
            n_fft=512,
            n_mels=n_mels,
        )
        offset = torch.zeros(streams, n_mels)
        offset[0] = self._MEAN_DB
        scale = torch.tensor(self._DEVIATIONS_DB[:streams])
        self.register_buffer("offset", offset.flatten(), persistent=False)
        self.register_buffer(
            "scale", scale.repeat_interleave(n_mels), persistent=False
        )

    def encode(self, wavs, samples):
        """Computes frames of 10 ms, or of ``stack`` times as much."""
        return [
            self._encode_one(wav[:count])
            for wav, count in zip(wavs, samples, strict=True)
        ]

    def _encode_one(self, wav):
        frames = (self.fbank(wav[None])[0] - self.offset) / self.scale
        if self.normalize != "none":
            frames = frames - frames.mean(dim=0)
        if self.normalize == "mean_std":
            # What does not vary, as in silence, must not become large.
            frames = frames / frames.std(dim=0, correction=0).clamp(min=1e-3)
        if self.window:
            start = (self.stack - self.window) // 2
            neighbours = torch.arange(start, start + self.window)
        else:
            neighbours = torch.arange(
                -self.context_frames, self.stack + self.context_frames
            )
        tokens = -(-len(frames) // self.stack)
        centres = torch.arange(tokens).unsqueeze(1) * self.stack
        # The first and last frame are repeated where there is no neighbour.
        positions = (centres + neighbours).clamp(0, len(frames) - 1)
        frames = frames[positions.to(frames.device)]  # (T', neighbours, n)
        return self._describe(frames) if self.window else frames.flatten(1)

    def _describe(self, windows):
        """Mean, deviation and change over windows ``(T', window, n_mels)``."""
        values = torch.stack(
            [
                windows.mean(dim=1),
                windows.std(dim=1, correction=0),
                windows.diff(dim=1).abs().mean(dim=1),
            ],
            dim=-1,
        )  # (T', n_mels, 3)
        mean, deviation = values.new_tensor(
            [self._WINDOW_MEAN, self._WINDOW_DEVIATION]
        )
        return ((values - mean) / deviation).flatten(1)


_WRAPPERS = {"hubert": HuBERT, "wav2vec2": Wav2Vec2, "wavlm": WavLM}


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
    """Loads a model through SpeechBrain's wrapper."""
    folder = local_folder(
        source,
        revision,
        needs=("config.json", "preprocessor_config.json"),
        cache_dir=save_path,
    )
    family = AutoConfig.from_pretrained(folder).model_type
    _check_family(family, source)
    try:
        wrapper = _WRAPPERS[family](folder, save_path=folder, freeze=True)
        # That weight stands in for masked frames, in pre-training alone.
        check_complete(folder, unused={"masked_spec_embed"})
    except (SafetensorError, RuntimeError) as error:
        raise BackboneError(
            f"The weights in {folder} cannot be loaded ({error}). Delete the "
            f"folder and download {source} again."
        ) from error
    is_folder = Path(source).expanduser().is_dir()
    origin = {
        "source": Path(folder).resolve().name if is_folder else source,
        # The cache names a folder by the commit that the revision stands for.
        "revision": None if is_folder else Path(folder).name,
        "weights": fingerprint(folder),
    }
    return wrapper.model, wrapper.normalize_wav, origin


def _check_family(family, source):
    if family not in _WRAPPERS:
        raise BackboneError(
            f"{source} is of the family {family!r}; HuggingFaceEncoder knows "
            f"{', '.join(_WRAPPERS)}."
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
