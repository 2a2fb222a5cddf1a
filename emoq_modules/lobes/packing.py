"""Packs sequences into rows, with the prefix they share once a row.

A row holds the prefix, then the rest of one sequence, the rest of the next, and
so on. Each rest sees the prefix and itself: the LLM computes for it what it
would for the whole sequence alone, but the prefix once for all of them, and
hardly any padding.
"""

import math
from typing import NamedTuple

import torch


class Packed(NamedTuple):
    """Packed sequences: R rows of S tokens, and where each sequence is.

    Arguments
    ---------
    tokens : torch.Tensor
        Token ids, ``(R, S)``.
    positions : torch.Tensor
        The place of each token in its own sequence, ``(R, S)``.
    attention_mask : torch.Tensor
        What each token attends to, ``(R, 1, S, S)``, bool. Padding attends to
        something too, as a softmax over nothing is not a number.
    rows : torch.Tensor
        The row of each sequence, ``(B,)``.
    shifts : torch.Tensor
        Token k of a sequence, if not shared, is in column ``k + shift``,
        ``(B,)``.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    attention_mask: torch.Tensor
    rows: torch.Tensor
    shifts: torch.Tensor


def pack(sequences, num_shared, max_tokens, pad_id):
    """Packs sequences into rows of similar length.

    Arguments
    ---------
    sequences : list of list of int
        Token ids of each; all begin with the same ``num_shared`` and go on.
    num_shared : int
        How many tokens are to be there once a row.
    max_tokens : int
        Length of a row, about; a longer sequence has a row for itself, and
        with 0 every one has.
    pad_id : int
        The token that pads.

    Returns
    -------
    Packed
        The rows, on the CPU.

    Example
    -------
    >>> packed = pack([[7, 8, 1, 2], [7, 8, 3]], 2, max_tokens=16, pad_id=0)
    >>> packed.tokens
    tensor([[7, 8, 1, 2, 3]])
    >>> packed.positions
    tensor([[0, 1, 2, 3, 2]])
    >>> packed.attention_mask[0, 0, 4].int()
    tensor([1, 1, 0, 0, 1], dtype=torch.int32)
    """
    lengths = [len(sequence) - num_shared for sequence in sequences]
    room = max(1, max_tokens - num_shared)
    num_rows = min(len(sequences), math.ceil(sum(lengths) / room))
    ends = [num_shared] * num_rows
    places = [None] * len(sequences)
    # The longest first, each into the row that is shortest so far.
    for index in sorted(range(len(lengths)), key=lengths.__getitem__)[::-1]:
        row = min(range(num_rows), key=ends.__getitem__)
        places[index] = row, ends[row] - num_shared
        ends[row] += lengths[index]

    tokens = torch.full((num_rows, max(ends)), pad_id)
    positions = torch.zeros_like(tokens)
    owners = torch.full_like(tokens, -1)  # of padding
    tokens[:, :num_shared] = torch.tensor(sequences[0][:num_shared])
    positions[:, :num_shared] = torch.arange(num_shared)
    owners[:, :num_shared] = len(sequences)
    for index, (row, shift) in enumerate(places):
        sequence = sequences[index]
        own = slice(num_shared + shift, len(sequence) + shift)
        tokens[row, own] = torch.tensor(sequence[num_shared:])
        positions[row, own] = torch.arange(num_shared, len(sequence))
        owners[row, own] = index

    size = tokens.shape[1]
    attention_mask = owners[:, :, None] == owners[:, None]  # (R, S, S)
    attention_mask[:, :, :num_shared] = True
    attention_mask &= torch.ones(size, size, dtype=torch.bool).tril()
    rows, shifts = torch.tensor(places).unbind(dim=1)
    return Packed(tokens, positions, attention_mask[:, None], rows, shifts)
