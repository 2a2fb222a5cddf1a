"""What the machine does at best, and what a computation takes of it."""

import time
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

_SIDES = {"cpu": 1024, "cuda": 8192}  # of the matrices that are multiplied
GIB = 2**30


def synchronize():
    """Waits for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matmul_rate(device, dtype, repetitions=5):
    """The fastest product of large matrices, in operations a second."""
    side = _SIDES[torch.device(device).type]
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    taken = []
    for _ in range(1 + repetitions):
        synchronize()
        started = time.perf_counter()
        a @ b
        synchronize()
        taken.append(time.perf_counter() - started)
    return 2 * side**3 / min(taken[1:])


def count_operations(function):
    """Operations that torch counts while a function runs."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def waiting_share(function):
    """Share of a function's time in which the training thread waits for data.

    torch's loaders mark that time for the profiler. Each step waits for its
    loss, so that the GPU has nothing to do then either.
    """
    started = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as found:
        function()
    seconds = time.perf_counter() - started
    waited = sum(
        event.cpu_time_total
        for event in found.key_averages()
        if event.key.startswith("enumerate(DataLoader)")
    )
    return waited / 1e6 / seconds


def peak_above(function):
    """Bytes of the GPU that a function needs beside those taken before it."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    return torch.cuda.max_memory_allocated() - before


@contextmanager
def kept_for_backward(modules):
    """Counts the bytes that autograd keeps, whatever the device.

    It yields a function that gives the bytes so far. What is kept twice counts
    once, and the parameters of the modules, a dict, not at all.
    """
    weights = {
        parameter.untyped_storage().data_ptr()
        for module in modules.values()
        for parameter in module.parameters()
    }
    found = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        # What is kept of a weight may be a view of it.
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield lambda: sum(found.values())
