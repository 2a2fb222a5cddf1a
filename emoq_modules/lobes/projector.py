"""The projector: from fused embeddings to soft prompts of an LLM."""

import math

import torch
from torch import nn


class Projector(nn.Module):
    """Maps unit-length embeddings into an LLM's word-embedding space.

    A linear map and a learned scale, which starts so that a soft prompt is as
    long as a word embedding is on average, as the LLM sees it: some, such as
    Gemma, scale the rows of the matrix.

    Arguments
    ---------
    embedding_dim : int
        Size of the embeddings.
    word_embeddings : torch.nn.Embedding
        The layer that makes the LLM's word embeddings, ``(|V|, d_l)``.

    Example
    -------
    >>> words = nn.Embedding(100, 16)
    >>> Projector(8, words)(torch.rand(3, 8)).shape
    torch.Size([3, 16])
    """

    def __init__(self, embedding_dim, word_embeddings):
        super().__init__()
        tokens = torch.arange(
            len(word_embeddings.weight), device=word_embeddings.weight.device
        )
        with torch.no_grad():  # in parts, as there may be 250,000
            norms = torch.cat(
                [
                    torch.linalg.vector_norm(
                        word_embeddings(some), dim=1, dtype=torch.float32
                    )
                    for some in tokens.split(2**14)
                ]
            )
            dim = word_embeddings(tokens[:1]).shape[1]
        self.linear = nn.Linear(embedding_dim, dim)
        # A unit-length embedding is mapped to an expected squared length of 1.
        nn.init.normal_(self.linear.weight, std=1 / math.sqrt(dim))
        nn.init.zeros_(self.linear.bias)
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
