"""Processes that work on one picture together, each on tiles of its own.

What they add up is the same to the last bit in all of them: it is summed in the first process and
sent from there. So they never part, whatever a backend's own sum guarantees and whichever devices
they have.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from nst_engine.options import OptionError

if TYPE_CHECKING:  # a torch without the distributed package has no such name
    from torch.distributed import ProcessGroup

T = TypeVar("T")
DIGEST_BYTES = 32


class Processes:
    """This process and those that it shares pictures with; one alone has nobody to wait for.

    All of them call the same methods in the same order, and wait in each until the others are there,
    at most for the timeout of the group.

    Args:
        group: None is this process alone.
        device: where messages are, of a kind that the group's backend can send from; None is the CPU.
    """

    def __init__(self, group: "ProcessGroup | None" = None, device: torch.device | None = None) -> None:
        self._group = group
        self._device = device
        self.rank = 0 if group is None else group.rank()
        self.size = 1 if group is None else group.size()

    def own(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share of items that cost about the same: every item is in one process's share."""
        return items[self.rank :: self.size]

    def summed(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sums over all processes, the same bits in each, of tensors of one dtype."""
        return self._in_one_message(tensors, self._sum)

    def agreed(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The first process's tensors, which are of one dtype, for all."""
        return self._in_one_message(tensors, self._broadcast)

    def least(self, number: int) -> int:
        """The smallest number that a process gives."""
        if self.size == 1:
            return number
        return int(torch.stack(self._gathered(torch.tensor(number, device=self._device))).min())

    @contextmanager
    def in_step(self, given: Mapping[str, Any]) -> Iterator[None]:
        """Runs its block, in which nothing is shared, and has either all processes go on from there or none.

        Args:
            given: what must be the same in all of them, by name; the names are.

        Raises:
            OptionError: something given differs; `field` is its name.
            RuntimeError: the block failed in another process.
        """
        if self.size == 1:
            yield
            return
        try:
            yield
        except Exception:
            self._reported(given, failed=True)
            raise
        self._check(self._reported(given, failed=False), list(given))

    def _reported(self, given: Mapping[str, Any], *, failed: bool) -> Tensor:
        """(processes, names + 1, `DIGEST_BYTES`) uint8: digests of what each was given, and whether it has failed."""
        rows = [*(digest(value) for value in given.values()), bytes([failed]) * DIGEST_BYTES]
        message = torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8).view(len(rows), DIGEST_BYTES)
        return torch.stack(self._gathered(message.to(self._device))).cpu()

    def _check(self, reported: Tensor, names: Sequence[str]) -> None:
        """Raises the first difference between the processes, or else the first failure."""
        differing = (reported[:, :-1] != reported[0, :-1]).any(2).T.nonzero().tolist()
        if differing:
            index, rank = differing[0]
            text = f"process {rank} of {self.size} has another one than process 0: give all of them the same"
            raise OptionError(names[index], text)
        failed = reported[:, -1].any(1).nonzero().flatten().tolist()
        if failed:
            raise RuntimeError(f"process {failed[0]} of {self.size} has failed, and its own error says why")

    def _gathered(self, tensor: Tensor) -> list[Tensor]:
        gathered = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(gathered, tensor, group=self._group)
        return gathered

    def _in_one_message(self, tensors: Sequence[Tensor], send: Callable[[Tensor], None]) -> list[Tensor]:
        if self.size == 1 or not tensors:
            return list(tensors)
        message = torch.cat([tensor.flatten() for tensor in tensors])
        send(message)
        parts = torch.split(message, [tensor.numel() for tensor in tensors])
        return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]

    def _sum(self, message: Tensor) -> None:
        dist.reduce(message, group=self._group, group_dst=0)
        self._broadcast(message)

    def _broadcast(self, message: Tensor) -> None:
        dist.broadcast(message, group=self._group, group_src=0)


def digest(value: object) -> bytes:
    """SHA-256 of arrays, numbers and strings, and of dataclasses, mappings and sequences of such.

    Equal values have equal ones, however an array lies in memory and a mapping is ordered.
    """
    if isinstance(value, Tensor):
        value = value.cpu().numpy()
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        data = f"{value.dtype.str}{value.shape}".encode() + value.tobytes()
    elif isinstance(value, Mapping):
        data = b"".join(digest(key) + digest(value[key]) for key in sorted(value))
    elif isinstance(value, list | tuple):
        data = b"".join(map(digest, value))
    else:
        data = repr(value).encode()
    return hashlib.sha256(type(value).__name__.encode() + data).digest()
