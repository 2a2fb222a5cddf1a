"""From a sequence to one vector, without its padding."""

import torch
from speechbrain.dataio.dataio import length_to_mask
from torch import nn


def mean_over_time(x, lens):
    """The mean of each sequence of a batch, without its padding.

    Arguments
    ---------
    x : torch.Tensor
        Features, ``(B, N, dim)``.
    lens : torch.Tensor
        Relative lengths, ``(B,)``.

    Returns
    -------
    torch.Tensor
        The means, ``(B, dim)``; 0 of nothing.

    Example
    -------
    >>> mean_over_time(torch.tensor([[[1.0], [3.0]]]), torch.tensor([0.5]))
    tensor([[1.]])
    """
    mask = length_mask(x, lens)[..., None]
    return (x * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def length_mask(x, lens):
    """Marks what is no padding.

    Arguments
    ---------
    x : torch.Tensor
        A batch of sequences, ``(B, N, ...)``.
    lens : torch.Tensor
        Relative lengths, ``(B,)``.

    Returns
    -------
    torch.Tensor
        ``(B, N)``, bool.

    Example
    -------
    >>> length_mask(torch.rand(2, 3, 8), torch.tensor([1.0, 1 / 3]))
    tensor([[ True,  True,  True],
            [ True, False, False]])
    """
    # Rounded, as in float32 some k / N * N exceed k.
    counts = (lens.float() * x.shape[1]).round()
    return length_to_mask(counts, x.shape[1], dtype=torch.bool)


class AttentivePooling(nn.Module):
    """Pools a sequence into one vector, by attention with several heads.

    Every head weighs the positions on its own and averages its slice of the
    features with these weights. Unlike SpeechBrain's ``AttentionPooling`` it
    leaves padding out, and unlike ``StatisticsPooling`` it adds no noise.

    Arguments
    ---------
    dim : int
        Size of the features.
    heads : int
        Number of heads; a ``ValueError`` if it is no divisor of ``dim``.

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
            Relative lengths, ``(B,)``, above 0: of nothing there is no mean.

        Returns
        -------
        torch.Tensor
            One vector for each sequence, ``(B, dim)``.
        """
        padding = ~length_mask(x, lens)[..., None]
        scores = self.score(x).masked_fill(padding, float("-inf"))
        weights = scores.softmax(dim=1)  # (B, N, heads)
        slices = x.unflatten(-1, (self.heads, -1))  # (B, N, heads, dim / heads)
        return (weights[..., None] * slices).sum(dim=1).flatten(1)
