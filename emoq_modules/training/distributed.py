"""Evaluation shared among ranks, with the results of one process.

The batches are those of one process, and so is every figure that is measured
on them. Ranks take them in turn. All take equally many, as modules may meet in
their forward pass: what is left over at the end is computed twice and counted
once.
"""

from itertools import chain

import torch
import torch.distributed as dist

from emoq_modules.evaluation.metrics import EmotionStats
from emoq_modules.training.ranks import own_rank, world_size


def own_batches(size, batch_size):
    """Lists the batches of a data set that this rank evaluates.

    Arguments
    ---------
    size : int
        Utterances in the set.
    batch_size : int
        Utterances in a batch.

    Returns
    -------
    list of list of int
        Indices into the set; in one process all of them, in order.

    Example
    -------
    >>> own_batches(5, 2)
    [[0, 1], [2, 3], [4]]
    """
    batches = [
        list(range(first, min(first + batch_size, size)))
        for first in range(0, size, batch_size)
    ]
    return [
        batches[(first + own_rank()) % len(batches)]
        for first in range(0, len(batches), world_size())
    ]


def join(stats, embeddings, evaluated):
    """Gathers what all ranks have measured.

    Arguments
    ---------
    stats : EmotionStats
        Of this rank's batches.
    embeddings : list of torch.Tensor
        ``(d_h,)`` each, in the order of ``stats``; may be empty.
    evaluated : list of tuple
        Of each batch its first place in ``stats``, and its loss.

    Returns
    -------
    stats : EmotionStats
        Of all batches, each once and in order.
    embeddings : list of torch.Tensor
        ``(d_h,)`` each, in the order of ``stats``.
    losses : list of float
        Of each batch, in the same order.
    """
    firsts, losses = zip(*evaluated, strict=True)
    own = []
    for loss, *ends in zip(losses, firsts, [*firsts[1:], None], strict=True):
        part = slice(*ends)
        measured = (
            stats.ids[part],
            torch.stack(stats.posteriors[part]),
            stats.targets[part],
            stats.dialogues[part],
        )
        # As copies: a part of a batch would be sent with all of the batch.
        own.append((loss, measured, [*map(torch.clone, embeddings[part])]))
    shares = [None] * world_size()
    dist.all_gather_object(shares, own)
    joined, embeddings, losses = EmotionStats(stats.labels), [], []
    for loss, measured, its_embeddings in chain.from_iterable(
        zip(*shares, strict=True)
    ):
        if measured[0][0] in joined.ids:
            continue  # left over at the end
        joined.append(*measured)
        embeddings += its_embeddings
        losses.append(loss)
    return joined, embeddings, losses
