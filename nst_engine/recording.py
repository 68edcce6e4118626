"""CUDA graphs: what a GPU does again and again, recorded once and launched as one.

A small picture's iteration is some hundreds of operations, each of which takes longer to launch than to
carry out. As a graph they are launched together.
"""

import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

log = logging.getLogger(__name__)

# Calls before the one that is recorded: what libraries set up when they are first used cannot be recorded.
WARM_UP_CALLS = 1

Function = Callable[..., Sequence[Tensor]]


class Pool:
    """The memory that recordings share. What one of them leaves there is gone when the next one is replayed."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    @cached_property
    def stream(self) -> torch.cuda.Stream:
        """Where recordings are made."""
        return torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def begin(self, graph: torch.cuda.CUDAGraph) -> None:
        """Begins to record what is launched on the current stream."""
        if not self._graphs:  # torch drops a pool with the last graph in it
            self._handle = torch.cuda.graph_pool_handle()
        # What other threads do meanwhile is none of the recording's business.
        graph.capture_begin(self._handle, capture_error_mode="thread_local")
        self._graphs.add(graph)


class Recording:
    """Calls one function of tensors, on a GPU as a graph from its second call on.

    The function must wait for nothing, change nothing but tensors in place, and always be given inputs of the
    same shapes. One that cannot be recorded is called as it is.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._calls_left: float = WARM_UP_CALLS
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._outputs: Sequence[Tensor] = ()

    def __call__(self, function: Function, *inputs: Tensor) -> Sequence[Tensor]:
        """What `function` returns for these inputs; not given at the start, or it would be kept alive."""
        if self._graph is None and inputs[0].is_cuda and self._calls_left <= 0:
            self._record(function, inputs)
        if self._graph is None:
            self._calls_left -= 1
            return function(*inputs)
        torch._foreach_copy_(self._inputs, inputs)
        self._graph.replay()
        return [output.clone() for output in self._outputs]

    def _record(self, function: Function, inputs: Sequence[Tensor]) -> None:
        own = [tensor.detach().clone() for tensor in inputs]
        graph, current, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream(), self._pool.stream
        stream.wait_stream(current)
        try:
            with torch.cuda.stream(stream):
                self._pool.begin(graph)
                try:
                    outputs = function(*own)
                finally:
                    graph.capture_end()
        except RuntimeError:
            log.warning("an operation could not be recorded as a CUDA graph", exc_info=True)
            self._calls_left = float("inf")
            return
        current.wait_stream(stream)
        self._graph, self._inputs, self._outputs = graph, own, outputs


class Recordings:
    """Recordings by what they are of, in one pool; the least recently used makes room."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pool = Pool()
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def call(
        self, key: Hashable, owners: Sequence[object], make: Callable[[], Function], inputs: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """What the function of that key returns; `make` makes it where it is not kept.

        It is kept as long as each of its owners lives, which it must not keep alive itself.
        """
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
        """Drops those with an owner that is gone, and makes room for one more."""
        gone = [key for key, kept in self._kept.items() if any(owner() is None for owner in kept.owners)]
        for key in gone:
            del self._kept[key]
        while len(self._kept) >= self._limit:
            self._kept.popitem(last=False)


class _Kept(NamedTuple):
    function: Function
    recording: Recording
    owners: Sequence[weakref.ref[object]]
