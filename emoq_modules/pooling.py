"""From a sequence to one vector; padding has no say in it."""

import torch
from torch import nn
from torch.nn import functional as F


class AttentivePooling(nn.Module):
    """Pools a sequence by learned attention, each head its own share of it.

    Every head weighs the positions on its own and averages its slice of the
    features with these weights. Unlike SpeechBrain's ``AttentionPooling`` it
    leaves padding out, and unlike ``StatisticsPooling`` it adds no noise.

    Arguments
    ---------
    dim : int
        Size of the features.
    heads : int
        Number of heads, a divisor of ``dim``.

    Raises
    ------
    ValueError
        If ``heads`` is no divisor of ``dim``.

    Example
    -------
    >>> pooling = AttentivePooling(dim=16, heads=4)
    >>> pooling(torch.rand(3, 20, 16), torch.tensor([1.0, 0.5, 0.8])).shape
    torch.Size([3, 16])
    """

    def __init__(self, dim, heads):
        super().__init__()
        if dim % heads:
            raise ValueError(
                f"{heads} pooling heads do not divide {dim} features evenly."
            )
        self.heads = heads
        # A bias in the last layer would be the same at every position.
        self.score = nn.Sequential(
            nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, heads, bias=False)
        )

    def forward(self, x, lens):
        """Pools each sequence of a batch, without its padding.

        Arguments
        ---------
        x : torch.Tensor
            Features, ``(B, N, dim)``.
        lens : torch.Tensor
            Relative lengths, ``(B,)``.

        Returns
        -------
        torch.Tensor
            ``(B, dim)``
        """
        mask = length_mask(x, lens)[..., None]  # (B, N, 1)
        scores = self.score(x).masked_fill(~mask, float("-inf"))
        weights = scores.softmax(dim=1)  # (B, N, heads)
        slices = x.unflatten(-1, (self.heads, -1))  # (B, N, heads, dim / heads)
        return (weights[..., None] * slices).sum(dim=1).flatten(1)


class MeanPooledAudio(nn.Module):
    """The mean of the audio frames, in the place of the EmoQ-Former.

    Takes the same arguments in ``forward`` and ignores the text: the rows
    "audio only" and "without EmoQ-Former" of the paper's Table 4.

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
        """Returns ``(B, audio_dim)``, each of unit L2 norm."""
        mask = length_mask(audio, audio_lens)[..., None]
        mean = (audio * mask).sum(dim=1) / mask.sum(dim=1)
        return F.normalize(mean, dim=-1)


class LayerWeightedMean(nn.Module):
    """A learned weighted mean of an encoder's layers, for a linear probe.

    Takes the same arguments in ``forward`` as ``EmoQFormer`` and ignores the
    text. The weights are a softmax, at first all the same. The embedding is
    not scaled to unit length: what follows is a linear classifier.

    Arguments
    ---------
    num_layers : int
        Rows of the input, ``LayerMeanEncoder.num_layers``: the layers of the
        encoder and one more.
    dim : int
        Size of a row, and of the embedding.

    Raises
    ------
    ValueError
        If ``num_layers`` is None, as it is of encoders that give frames.

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
        """Returns ``(B, dim)`` for rows ``audio``, ``(B, num_layers, dim)``.

        Raises
        ------
        ValueError
            If there are more rows or fewer.
        """
        if audio.shape[1] != len(self.scores):
            raise ValueError(
                f"There are {audio.shape[1]} rows for the weights of "
                f"{len(self.scores)} layers; num_layers has to be that of the "
                "LayerMeanEncoder, the layers of its model and one more."
            )
        return (self.scores.softmax(0)[:, None] * audio).sum(dim=1)


def length_mask(sequence, lens):
    """Tells what is inside each sequence and what is padding.

    Rounds, where a bare comparison would let 7.0000005 positions be 8.

    Arguments
    ---------
    sequence : torch.Tensor
        ``(B, N, ...)``
    lens : torch.Tensor
        Relative lengths, ``(B,)``.

    Returns
    -------
    torch.Tensor
        Booleans, ``(B, N)``.

    Example
    -------
    >>> length_mask(torch.zeros(2, 4), torch.tensor([1.0, 0.5])).sum(dim=1)
    tensor([4, 2])
    """
    size = sequence.shape[1]
    lengths = (lens.float() * size).round()
    return torch.arange(size, device=sequence.device) < lengths[:, None]
