"""The ranks of a run: which one this is, and how many there are."""

import torch.distributed as dist


def own_rank():
    """Which of the run's processes this is; 0 if it is the only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    """How many processes the run has."""
    return dist.get_world_size() if dist.is_initialized() else 1
