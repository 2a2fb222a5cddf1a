"""A device that is not the CPU, for machines that have no other.

Its tensors compute on the CPU, but say that they are elsewhere, and refuse to
meet one that is not: what a GPU would refuse, fails here too. torch has to
know a device's name; ``meta``, which nothing else here uses, lends its own.
"""

from contextlib import contextmanager, nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

ELSEWHERE = torch.device("meta")
_MAY_BE_ON_THE_CPU = ("aten::index", "aten::_index_put_impl_", "aten::copy_")


class _Tensor(torch.Tensor):
    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            dtype=inner.dtype,
            device=ELSEWHERE,
        )

    def __init__(self, inner):
        self.inner = inner

    def tolist(self):
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


@contextmanager
def elsewhere(monkeypatch):
    """Within it, ``.to(ELSEWHERE)`` and ``device=ELSEWHERE`` work."""
    autocast, tensor = torch.autocast, torch.tensor

    def tensor_in_two_steps(data, device=None, **kwargs):
        return tensor(data, **kwargs).to(device or "cpu")

    def without_meta(device_type, *args, **kwargs):
        if device_type == ELSEWHERE.type:  # it knows no precision but its own
            return nullcontext()
        return autocast(device_type, *args, **kwargs)

    with _Mode(), monkeypatch.context() as patch:
        patch.setattr(torch, "autocast", without_meta)
        patch.setattr(torch, "get_autocast_dtype", lambda device_type: None)
        patch.setattr(torch, "is_autocast_enabled", lambda device_type: False)
        # Such tensors have no views by way of a subclass.
        patch.setattr(torch, "inference_mode", torch.no_grad)
        # In one it would not come by here.
        patch.setattr(torch, "tensor", tensor_in_two_steps)
        yield


def _run(function, args, kwargs):
    tensors = [
        value
        for value in tree_flatten((args, kwargs))[0]
        if isinstance(value, torch.Tensor)
    ]
    there = any(isinstance(tensor, _Tensor) for tensor in tensors)
    target = kwargs.get("device")
    if target is not None:
        there = torch.device(target) == ELSEWHERE
        kwargs = {**kwargs, "device": "cpu"}
    elif there and not function._schema.name.startswith(_MAY_BE_ON_THE_CPU):
        _refuse_strangers(function, tensors)
    result = function(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    if function._schema.is_mutable:
        return args[0]
    return tree_map(_outer, result) if there else result


def _refuse_strangers(function, tensors):
    for tensor in tensors:
        # A single number may come from anywhere.
        if not isinstance(tensor, _Tensor) and tensor.dim():
            raise RuntimeError(
                f"{function._schema.name} meets a tensor on the CPU, of shape "
                f"{tuple(tensor.shape)}"
            )


def _inner(value):
    return value.inner if isinstance(value, _Tensor) else value


def _outer(value):
    is_plain = isinstance(value, torch.Tensor) and not isinstance(
        value, _Tensor
    )
    return _Tensor(value) if is_plain else value
