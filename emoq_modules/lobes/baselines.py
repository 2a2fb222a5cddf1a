"""Ablations and baselines.

The frames themselves or their mean in the place of the EmoQ-Former, Table 4 of
the paper; and a linear probe of an encoder, the baseline of Tables 1 and 2.
"""

import torch
from torch import nn
from torch.nn import functional as F

from emoq_modules.lobes.audio_encoder import HuggingFaceEncoder
from emoq_modules.lobes.pooling import mean_over_time


class AudioFrames(nn.Module):
    """The audio frames themselves, in the place of the EmoQ-Former.

    It is the fusion of "audio only" and "without EmoQ-Former" in Table 4: the
    LLM gets every frame as a soft prompt. Encoders and their layers give frames
    of any size and about any mean; the projector expects unit vectors.

    Arguments
    ---------
    audio_dim : int
        Size of an audio frame, and of an embedding.

    Example
    -------
    >>> fusion = AudioFrames(audio_dim=8)
    >>> frames, _ = fusion(torch.rand(3, 20, 8), torch.ones(3), None, None)
    >>> frames.shape
    torch.Size([3, 20, 8])
    """

    def __init__(self, audio_dim):
        super().__init__()
        self.output_dim = audio_dim

    def forward(self, audio, audio_lens, tokens, token_lens):
        """Centers and scales each frame.

        Arguments
        ---------
        audio : torch.Tensor
            Frames of any encoder, ``(B, T, audio_dim)``.
        audio_lens : torch.Tensor
            Relative lengths, ``(B,)``.
        tokens : torch.Tensor | None
            Unused; part of the interface of ``EmoQFormer``.
        token_lens : torch.Tensor | None
            Likewise.

        Returns
        -------
        embeddings : torch.Tensor
            ``(B, T, audio_dim)``, each of mean 0 and unit L2 norm.
        lens : torch.Tensor
            Their relative lengths, ``(B,)``.
        """
        normal = F.layer_norm(audio, audio.shape[-1:])
        return F.normalize(normal, dim=-1), audio_lens


class MeanPooledAudio(nn.Module):
    """The mean of the audio frames, in the place of the EmoQ-Former.

    It is one soft prompt, where ``AudioFrames`` gives the LLM all of them.

    Arguments
    ---------
    audio_dim : int
        Size of an audio frame, and of the embedding.

    Example
    -------
    >>> fusion = MeanPooledAudio(audio_dim=8)
    >>> fusion(torch.rand(3, 20, 8), torch.ones(3), None, None).shape
    torch.Size([3, 8])
    """

    def __init__(self, audio_dim):
        super().__init__()
        self.output_dim = audio_dim

    def forward(self, audio, audio_lens, tokens, token_lens):
        """Computes the mean of each utterance's frames.

        Arguments
        ---------
        audio : torch.Tensor
            Frames of any encoder, ``(B, T, audio_dim)``.
        audio_lens : torch.Tensor
            Relative lengths, ``(B,)``.
        tokens : torch.Tensor | None
            Unused; part of the interface of ``EmoQFormer``.
        token_lens : torch.Tensor | None
            Likewise.

        Returns
        -------
        torch.Tensor
            Embeddings, ``(B, audio_dim)``, each of unit L2 norm.
        """
        return F.normalize(mean_over_time(audio, audio_lens), dim=-1)


class LayerWeightedMean(nn.Module):
    """A learned weighted mean of an encoder's layers, for a linear probe.

    The weights are a softmax, at first all the same. The embedding is not
    scaled to unit length: what follows is a linear classifier.

    Arguments
    ---------
    num_layers : int
        Rows of the input: ``LayerMeanEncoder.num_layers``. That of encoders
        which give frames is None, and a ``ValueError``.
    dim : int
        Size of a row, and of the embedding.

    Example
    -------
    >>> fusion = LayerWeightedMean(num_layers=13, dim=8)
    >>> fusion(torch.rand(3, 13, 8), torch.ones(3), None, None).shape
    torch.Size([3, 8])
    """

    def __init__(self, num_layers, dim):
        super().__init__()
        if num_layers is None:
            raise ValueError(
                "LayerWeightedMean is for an encoder that gives a row for each "
                "layer, and audio_encoder gives frames: make it an "
                "emoq_modules.LayerMeanEncoder."
            )
        self.scores = nn.Parameter(torch.zeros(num_layers))
        self.output_dim = dim

    def forward(self, audio, audio_lens, tokens, token_lens):
        """Weighs the layers of each utterance.

        Arguments
        ---------
        audio : torch.Tensor
            Rows of ``LayerMeanEncoder``, ``(B, num_layers, dim)``; a
            ``ValueError`` if there are more or fewer.
        audio_lens : torch.Tensor
            Unused; every utterance has a row for each layer.
        tokens : torch.Tensor | None
            Unused; part of the interface of ``EmoQFormer``.
        token_lens : torch.Tensor | None
            Likewise.

        Returns
        -------
        torch.Tensor
            Embeddings, ``(B, dim)``.
        """
        if audio.shape[1] != len(self.scores):
            raise ValueError(
                f"There are {audio.shape[1]} rows for the weights of "
                f"{len(self.scores)} layers; num_layers has to be that of the "
                "LayerMeanEncoder, the layers of its model and one more."
            )
        return (self.scores.softmax(0)[:, None] * audio).sum(dim=1)


class LayerMeanEncoder(HuggingFaceEncoder):
    """The mean over time of every layer of a ``HuggingFaceEncoder``.

    In the place of frames each utterance has a row for what the first layer
    gets and one for the output of each layer, before any norm that follows the
    last one. A weighting of layers followed by a mean over time needs no more,
    both being linear: see ``LayerWeightedMean``.

    Arguments
    ---------
    source : str | dict
        As of ``HuggingFaceEncoder``, which raises the same errors.
    revision : str | None
        Branch, tag or commit on the hub.
    save_path : str | None
        Where downloads are kept; None is Hugging Face's own cache.
    frame_norm : bool
        Whether each frame of each layer is normalized before the mean, by a
        layer norm without weights, as ``EmoQFormer`` normalizes what it is
        given. Frames of large values would make up the mean otherwise.

    Example
    -------
    >>> hubert = {"model_type": "hubert", "hidden_size": 32}
    >>> hubert |= {"num_hidden_layers": 2, "num_attention_heads": 4}
    >>> hubert |= {"intermediate_size": 64, "conv_dim": [32] * 7}
    >>> encoder = LayerMeanEncoder(hubert)
    >>> rows, lens = encoder(torch.rand(2, 16000), torch.tensor([1.0, 0.5]))
    >>> rows.shape, encoder.num_layers, lens
    (torch.Size([2, 3, 32]), 3, tensor([1., 1.]))
    """

    def __init__(self, source, revision=None, save_path=None, frame_norm=False):
        super().__init__(source, "all", revision, save_path)
        self.frame_norm = frame_norm
        if frame_norm:
            self.identity["frame_norm"] = True
        self.identity["layer"] = -1  # as in the stores of version 0.1
        self.num_layers, self.frame_layers = self.frame_layers, 1
        self.dim //= self.num_layers
        self.hop_s = None

    def _take(self, states, counts):
        states = [state.float() for state in states]
        if self.frame_norm:
            states = [F.layer_norm(state, (self.dim,)) for state in states]
        return [
            torch.stack(
                [state[row, :count].mean(0) for state in states]
            )  # (num_layers, dim)
            for row, count in enumerate(counts)
        ]
