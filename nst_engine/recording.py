"""CUDA graphs: what a GPU does again and again, recorded once and launched as one.

A small picture's iteration is some hundreds of operations, each of which takes longer to launch than to
carry out. As a graph they are launched together.
"""

import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

log = logging.getLogger(__name__)

# With more a GPU takes longer to compute than Python to launch, and a recording would only hold memory.
RECORDED_PIXELS = 2**20

Function = Callable[..., Sequence[Tensor]]

_one_at_a_time = threading.Lock()


class Pool:
    """The memory that recordings share on one device. What one leaves there is gone when another is replayed.

    So all of them are of one thread, or one would be replayed before what another has left is fetched.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._handle: Any = None
        self._graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    @cached_property
    def _stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def record(self, function: Function, inputs: Sequence[Tensor]) -> tuple[torch.cuda.CUDAGraph, Sequence[Tensor]]:
        """A graph of `function` at these inputs, which stay its own, and where it leaves the results.

        Raises:
            RuntimeError: the function waits for something, or there is not enough memory. Nothing was carried out.
        """
        graph = torch.cuda.CUDAGraph()
        with _one_at_a_time, torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                if not self._graphs:  # torch drops a pool with the last graph in it
                    self._handle = torch.cuda.graph_pool_handle()
                # What other threads do meanwhile is none of the recording's business.
                graph.capture_begin(self._handle, capture_error_mode="thread_local")
                self._graphs.add(graph)
                try:
                    outputs = function(*inputs)
                except BaseException:
                    self._graphs = weakref.WeakSet()  # torch goes on recording into a pool where this has failed
                    raise
                finally:
                    graph.capture_end()
            current.wait_stream(self._stream)
        return graph, outputs


class Recording:
    """Calls one function of tensors, on a GPU as a graph from its second call on: the first sets libraries up.

    The function must wait for nothing, change nothing but tensors in place, and always be given inputs of the
    same shapes. One that cannot be recorded, or has no pool for it, is called as it is.
    """

    def __init__(self, pool: Pool | None) -> None:
        self._pool = pool
        self._warm = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._outputs: Sequence[Tensor] = ()

    def __call__(self, function: Function, *inputs: Tensor) -> Sequence[Tensor]:
        """What `function` returns for these inputs; not given at the start, or it would be kept alive."""
        if self._graph is None and self._warm and self._pool is not None and inputs[0].is_cuda:
            self._record(self._pool, function, inputs)
        if self._graph is None:
            outputs = function(*inputs)
            self._warm = True
            return outputs
        torch._foreach_copy_(self._inputs, inputs)
        self._graph.replay()
        return [output.clone() for output in self._outputs]

    def _record(self, pool: Pool, function: Function, inputs: Sequence[Tensor]) -> None:
        own = [tensor.detach().clone() for tensor in inputs]
        try:
            self._graph, self._outputs = pool.record(function, own)
        except RuntimeError:
            log.warning("an operation could not be recorded as a CUDA graph", exc_info=True)
            self._pool = None
            return
        self._inputs = own


class Owner(Protocol):
    """What a function belongs to: `revision` is another whenever the function is, and no two owners ever share one."""

    revision: int


class Recordings:
    """Recordings by their owners, in one pool; the least recently used makes room."""

    def __init__(self, device: torch.device, limit: int) -> None:
        self._limit = limit
        self._pool = Pool(device)
        self._kept: OrderedDict[tuple[int, ...], _Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def call(self, owners: Sequence[Owner], make: Callable[[], Function], inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """What the function of these owners returns; `make` makes it where it is not kept.

        It is kept as long as each of its owners lives, which it must not keep alive itself, and is what it was.
        """
        key = tuple(owner.revision for owner in owners)
        if key not in self._kept:
            self._forget()
            self._kept[key] = _Kept(make(), Recording(self._pool), [weakref.ref(owner) for owner in owners])
        self._kept.move_to_end(key)
        kept = self._kept[key]
        return kept.recording(kept.function, *inputs)

    def clear(self) -> None:
        """Lets all of them go, and what they hold."""
        self._kept.clear()

    def _forget(self) -> None:
        """Drops those with an owner that is gone or has changed, and makes room for one more."""
        for key, kept in list(self._kept.items()):
            owners = [reference() for reference in kept.owners]
            if key != tuple(owner and owner.revision for owner in owners):
                del self._kept[key]
        while len(self._kept) >= self._limit:
            self._kept.popitem(last=False)


class _Kept(NamedTuple):
    function: Function
    recording: Recording
    owners: Sequence[weakref.ref[Owner]]
