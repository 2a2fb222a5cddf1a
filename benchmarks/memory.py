"""Bytes that a computation keeps for its backward pass."""

from contextlib import contextmanager

import torch


@contextmanager
def kept_for_backward(modules):
    """Counts what autograd keeps, whatever the device.

    Arguments
    ---------
    modules : dict
        Modules by name, whose parameters do not count: they are there anyway.

    Yields
    ------
    callable
        From nothing to the bytes so far; what is kept twice counts once.

    Example
    -------
    >>> layer = torch.nn.Linear(10, 1)
    >>> with kept_for_backward({"layer": layer}) as kept:
    ...     loss = layer(torch.rand(4, 10)).square().sum()
    >>> kept()  # the layer's input and output
    176
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
