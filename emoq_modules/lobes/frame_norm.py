"""Gives frames of any encoder, and of any of its layers, one size."""

import torch
from torch import nn
from torch.nn import functional as F


class FrameNorm(nn.Module):
    """Normalizes each frame; of several layers, mixes what is normalized.

    It is the layer norm before the projection of BLIP-2 and SALMONN: encoders
    and their layers differ in the size of their values, and a projection made
    for another size would hardly train. Layers are mixed by a learned softmax,
    at first all alike (the usual protocol of SUPERB, here on frames).

    Arguments
    ---------
    dim : int
        Size of a frame of one layer.
    layers : int
        Layers side by side in a frame.

    Example
    -------
    >>> FrameNorm(dim=8, layers=3)(525 * torch.rand(20, 24)).shape
    torch.Size([20, 8])
    """

    def __init__(self, dim, layers=1):
        super().__init__()
        self.size = layers, dim
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        if layers > 1:
            self.scores = nn.Parameter(torch.zeros(layers))

    def forward(self, frames):
        """Normalizes and mixes frames.

        Arguments
        ---------
        frames : torch.Tensor
            ``(..., layers * dim)``, layer by layer.

        Returns
        -------
        torch.Tensor
            ``(..., dim)``
        """
        layers, dim = self.size
        if layers == 1:
            return F.layer_norm(frames, (dim,), self.weight, self.bias)
        frames = F.layer_norm(frames.unflatten(-1, self.size), (dim,))
        mixed = (self.scores.softmax(0)[:, None] * frames).sum(dim=-2)
        return mixed * self.weight + self.bias
