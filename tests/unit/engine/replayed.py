"""What a CUDA graph does, on a CPU: the operations of a function, carried out again on the tensors that they had."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from nst_engine.recording import Function


class Replayed:
    """Stands for `torch.cuda.CUDAGraph`: numbers are those of the recording, and tensors the same memory.

    What it has made is spoilt before it is replayed, and what it was given must be held by others than itself.
    """

    def __init__(self, function: Function, inputs: Sequence[Tensor]) -> None:
        with _Log() as log:
            self.outputs = function(*inputs)
        self._operations = log.operations
        for tensor, before in reversed(log.overwritten):
            tensor.copy_(before)  # recording carries nothing out
        self._made: dict[Any, Tensor] = {}
        self._given: dict[int, list[Tensor]] = {}
        for tensor in filter(_has_memory, tree_leaves(log.operations)):
            if _memory(tensor) not in log.made:
                self._given.setdefault(_memory(tensor), []).append(tensor)
            elif tensor.is_floating_point():
                self._made[tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()] = tensor
        self._spoil()

    def _spoil(self) -> None:
        for tensor in self._made.values():
            tensor.fill_(torch.nan)

    def replay(self) -> None:
        """Does all of it again."""
        assert all(map(_held_by_others, self._given.values())), "freed memory"
        with torch.no_grad():
            self._spoil()
            for operation, args, kwargs, results in self._operations:
                for result, again in zip(results, tree_leaves(operation(*args, **kwargs)), strict=True):
                    if isinstance(result, Tensor) and result.data_ptr() != again.data_ptr():
                        result.copy_(again)


class _Log(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, list[Any]]] = []
        self.overwritten: list[tuple[Tensor, Tensor]] = []
        self.made: set[int] = set()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for argument, value in zip(operation._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written = [leaf for leaf in tree_leaves(value) if _memory(leaf) not in self.made]
                self.overwritten += [(tensor, tensor.clone()) for tensor in written]
        results = operation(*args, **kwargs)
        leaves = tree_leaves(results)
        if torch.Tag.inplace_view not in operation.tags:  # such change no numbers, but shapes, of what is logged too
            self.operations.append((operation, *tree_map(_as_it_is, (args, kwargs, leaves))))
        new = {_memory(leaf) for leaf in leaves if isinstance(leaf, Tensor)}
        self.made |= new - {_memory(tensor) for tensor in given}
        return results


def _as_it_is(value: Any) -> Any:
    """The same memory in a shape that stays, whatever is done with the tensor."""
    return value.detach() if _has_memory(value) else value


def _has_memory(value: Any) -> bool:
    return isinstance(value, Tensor) and not _opaque(value)


def _held_by_others(tensors: Sequence[Tensor]) -> bool:
    """Whether anything but these tensors, and the storage asked about, refers to the memory that they share."""
    storage = tensors[0].untyped_storage()
    return torch._C._storage_Use_Count(storage._cdata) > len(tensors) + 1


def _opaque(tensor: Tensor) -> bool:
    """Whether these are kernels that are packed."""
    return tensor.layout is torch._mkldnn  # type: ignore[attr-defined]


def _memory(tensor: Tensor) -> int:
    return id(tensor) if _opaque(tensor) else tensor.untyped_storage().data_ptr()
