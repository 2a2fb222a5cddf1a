"""The ranks of a run: how they start, and how they share an evaluation.

Its batches are those of one process, and so are the results. Ranks take them in
turn, and equally many, as modules may meet in their forward pass: what is left
over at the end is computed twice and counted once.
"""

import os
from datetime import timedelta
from itertools import chain

import torch
import torch.distributed as dist

from emoq_modules.evaluation.metrics import EmotionStats

# The others wait for rank 0 as long as it prepares a corpus or fetches an LLM.
_TIMEOUT_S = 3600


def init_ranks(run_opts):
    """Joins the processes that torchrun has started, and does nothing in one.

    A rank that dies ends the run. torchrun's agent ends the others of its node
    within seconds. Those of other nodes end at the next collective: at once if
    the connection has closed, or else, as after a loss of power, when they have
    waited for an hour, or for the seconds of the environment variable
    ``EMOQ_TIMEOUT_S``. SpeechBrain's ``ddp_init_group`` has two hours, always.
    """
    if "LOCAL_RANK" not in os.environ:
        return
    backend = run_opts["distributed_backend"]
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    seconds = float(os.environ.get("EMOQ_TIMEOUT_S", _TIMEOUT_S))
    dist.init_process_group(backend, timeout=timedelta(seconds=seconds))


def own_rank():
    """Rank of this process in the run; 0 if it is the only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    """Number of processes of the run; 1 if it is not distributed."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank_batches(size, batch_size):
    """The batches, as indices into a data set, that this rank evaluates.

    Example
    -------
    >>> rank_batches(5, 2)
    [[0, 1], [2, 3], [4]]
    """
    order = list(range(size))
    batches = [order[k : k + batch_size] for k in range(0, size, batch_size)]
    return [
        batches[(first + own_rank()) % len(batches)]
        for first in range(0, len(batches), world_size())
    ]


def join(stats, embeddings, evaluated):
    """Gathers what all ranks have measured: every batch once, and in order.

    Takes the statistics and embeddings, ``(d_h,)`` each, of this rank, and for
    each of its batches the first place in them and the loss; returns
    statistics, embeddings and losses of all.
    """
    own = []
    ends = [first for first, _ in evaluated[1:]] + [None]
    for (first, loss), end in zip(evaluated, ends, strict=True):
        part = slice(first, end)
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
