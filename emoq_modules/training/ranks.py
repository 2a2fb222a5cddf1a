"""The ranks of a run: which one this is, and how many there are."""

import torch.distributed as dist


def own_rank():
    """Rank of this process in the run.

    Returns
    -------
    int
        From 0 on; 0 if it is the only process.
    """
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    """Number of processes of the run.

    Returns
    -------
    int
        1 where training is not distributed.
    """
    return dist.get_world_size() if dist.is_initialized() else 1
