"""Frozen audio encoders: waveforms in, frames out, the same in any batch.

An encoder of this file never trains and is never in train mode, and the
frames of an utterance do not depend on what else is in its batch: they may be
computed once, stored, and used in any other batch.
"""

import torch
from speechbrain.dataio.dataio import length_to_mask
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from emoq_modules.lobes.audio_families import (
    load_audio_configuration,
    load_audio_model,
)


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
    # How many layers lie side by side in a frame; dim is the size of all.
    frame_layers = 1

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
    """HuBERT and its relatives, w2v-BERT or Whisper, from Hugging Face.

    The families are data2vec-audio, HuBERT, UniSpeech, UniSpeech-SAT, wav2vec
    2.0, wav2vec2-bert, WavLM and Whisper, of which the encoder is taken. Each
    utterance is prepared by itself, as the feature extractor beside the weights
    does; where padding would show in the frames, utterances are taken one by
    one. Whisper hears 30 s, filled up with silence: longer audio goes in
    windows of 30 s, whose frames are joined, and what stands for silence at the
    end is cut off. An adapter after the layers is left out.

    Arguments
    ---------
    source : str | dict
        Name on the Hugging Face hub, or a local folder with the weights and
        ``preprocessor_config.json``; or the values of a configuration, with
        ``model_type``, which gives random weights.
    layer : int | list of int | str
        Whose output to take: -1 the model's output, k > 0 the k-th transformer
        layer's, before any norm that follows the last layer (those above are
        dropped), 0 what the first layer gets. Of several, none of them -1, or
        of "all", from 0 on, the frames lie side by side; ``dim`` is the size of
        all, and ``frame_layers`` their number.
    revision : str | None
        Branch, tag or commit on the hub.
    save_path : str | None
        Where downloads are kept; None is Hugging Face's own cache.
    precision : str
        What to compute in, whatever the weights are stored in: fp32, or bf16,
        for which GPUs have more arithmetic, and which rounds more than a store
        of half precision does.

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
    >>> encoder = HuggingFaceEncoder(hubert, layer=[1, 2])
    >>> frames, lens = encoder(torch.rand(2, 16000), torch.tensor([1.0, 0.5]))
    >>> frames.shape, encoder.frame_layers
    (torch.Size([2, 49, 64]), 2)
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
        model, front_end, origin = load_audio_model(source, revision, save_path)
        config = model.config
        layers = _chosen(layer, config.num_hidden_layers, origin["source"])
        single = len(layers) == 1
        super().__init__(
            config.hidden_size * len(layers),
            {
                "class": type(self).__name__,
                "version": 2,
                **origin,
                **({} if precision == "fp32" else {"precision": precision}),
                "layer": layers[0] if single else layers,
            },
        )
        self.frame_layers = len(layers)
        if layers != [-1]:
            stack = getattr(model, "encoder", model)
            stack.layers = stack.layers[: max(layers)]
            if front_end.final_norm:
                stack.layer_norm = nn.Identity()
        self.model = model.to(_DTYPES[precision])
        self.front_end = front_end
        self.hop_s = front_end.hop / self.sample_rate
        self._layers = [-1] if single else layers  # the last is its output

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
            Frames ``(T', dim)`` of each, float32, at least one; of several
            layers one layer's values after the other's.
        """
        if self.front_end.one_by_one and len(samples) > 1:
            return [
                self.encode(wav[None, :count], [count])[0]
                for wav, count in zip(wavs, samples, strict=True)
            ]
        features, mask, counts = self.front_end(wavs, samples)
        output = self.model(
            features.to(self.model.dtype),
            attention_mask=mask,
            output_hidden_states=len(self._layers) > 1,
        )
        # The last of the hidden states may lack what follows the layers.
        states = (output.hidden_states or ())[:-1] + (output.last_hidden_state,)
        # The windows of an utterance are one after the other.
        return self._take(
            [
                state.reshape(len(samples), -1, state.shape[-1])
                for state in states
            ],
            counts,
        )

    def _take(self, states, counts):
        """Takes of hidden states ``(B, T', n)`` what stands for each."""
        frames = torch.cat([states[k] for k in self._layers], dim=-1).float()
        return [f[:count] for f, count in zip(frames, counts, strict=True)]


def count_layers(source, layer, revision=None):
    """Counts the layers that a frame of ``HuggingFaceEncoder`` holds.

    Arguments
    ---------
    source : str | dict
        As of ``HuggingFaceEncoder``; looked at only for "all".
    layer : int | list of int | str
        Likewise.
    revision : str | None
        Branch, tag or commit on the hub.

    Returns
    -------
    int
        Their number; a ``BackboneError`` if the source is not to be had.

    Example
    -------
    >>> count_layers("any/encoder", -1), count_layers("any/encoder", [4, 8])
    (1, 2)
    >>> count_layers({"model_type": "wavlm", "num_hidden_layers": 12}, "all")
    13
    """
    if layer != "all":
        return len(layer) if isinstance(layer, list | tuple) else 1
    config = load_audio_configuration(source, revision)
    return config.num_hidden_layers + 1


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _chosen(layer, num_layers, source):
    """The layers that are asked for."""
    if layer == "all":
        return [*range(num_layers + 1)]
    several = isinstance(layer, list | tuple)
    layers, lowest = [*layer] if several else [layer], 0 if several else -1
    for k in layers or [layer]:
        if type(k) is not int or not lowest <= k <= num_layers:
            raise ValueError(
                f"There is no layer {k} in {source}: it has {num_layers}. Give "
                "a number from 0 on, several as [4, 8], or all; -1 by itself "
                "is the model's output."
            )
    return layers
