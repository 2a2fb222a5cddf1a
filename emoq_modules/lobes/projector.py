"""The projector: from fused embeddings to soft prompts of an LLM."""

import math

import torch
from torch import nn


class Projector(nn.Module):
    """Maps unit-length embeddings into an LLM's word-embedding space.

    A linear map and a learned scale, which starts so that a soft prompt is as
    long as a word embedding is on average.

    Arguments
    ---------
    embedding_dim : int
        Size of the embeddings.
    word_embeddings : torch.Tensor
        The LLM's word embeddings, ``(|V|, d_l)``.

    Example
    -------
    >>> Projector(8, torch.randn(100, 16))(torch.rand(3, 8)).shape
    torch.Size([3, 16])
    """

    def __init__(self, embedding_dim, word_embeddings):
        super().__init__()
        dim = word_embeddings.shape[1]
        self.linear = nn.Linear(embedding_dim, dim)
        # A unit-length embedding is mapped to an expected squared length of 1.
        nn.init.normal_(self.linear.weight, std=1 / math.sqrt(dim))
        nn.init.zeros_(self.linear.bias)
        norms = torch.linalg.vector_norm(
            word_embeddings.detach(), dim=1, dtype=torch.float32
        )
        self.scale = nn.Parameter(norms.mean())

    def forward(self, embeddings):
        """Makes soft prompts of embeddings.

        Arguments
        ---------
        embeddings : torch.Tensor
            Embeddings of unit L2 norm, ``(B, embedding_dim)``.

        Returns
        -------
        torch.Tensor
            One soft prompt for each, ``(B, d_l)``.
        """
        return self.scale * self.linear(embeddings)
