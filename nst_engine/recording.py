"""CUDA graphs: what a GPU does again and again, recorded once and launched as one.

A small picture's iteration is some hundreds of operations, each of which takes longer to launch than to
carry out. As a graph they are launched together.
"""

import logging
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

log = logging.getLogger(__name__)

# With more a GPU takes longer to compute than Python to launch, and a recording would only hold memory.
RECORDED_PIXELS = 2**20

Function = Callable[..., Sequence[Tensor]]
Lent = TypeVar("Lent", bound="Thing")

_one_at_a_time = threading.Lock()


class Pool:
    """The memory that recordings share on one device. What one leaves there is gone when another is replayed.

    So all of them are of one thread, or one would be replayed before what another has left is fetched.

    Attributes:
        records: whether there is anything to be gained on the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.records = device.type == "cuda"
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
        with suppress(torch.OutOfMemoryError):
            return self._recorded(function, inputs)
        # Of what torch keeps for operations that are launched, it gives nothing back while it records.
        torch.cuda.empty_cache()
        return self._recorded(function, inputs)

    def _recorded(self, function: Function, inputs: Sequence[Tensor]) -> tuple[torch.cuda.CUDAGraph, Sequence[Tensor]]:
        graph = torch.cuda.CUDAGraph()
        with _one_at_a_time, torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                others = list(self._graphs)  # none of them goes meanwhile, in another thread
                if not others:  # torch drops a pool with the last graph in it
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

    Attributes:
        failed: whether it could not be recorded, be it for want of memory at the time.
    """

    def __init__(self, pool: Pool | None) -> None:
        self.failed = False
        self._pool = pool
        self._warm = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._outputs: Sequence[Tensor] = ()

    def __call__(self, function: Function, *inputs: Tensor) -> Sequence[Tensor]:
        """What `function` returns for these inputs; not given at the start, or it would be kept alive."""
        if self._graph is None and self._warm and self._pool is not None and self._pool.records:
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
            self.failed, self._pool = True, None
            return
        self._inputs = own


class Owner(Protocol):
    """What a function belongs to: `revision` is another whenever the function is, and no two owners ever share one."""

    revision: int


class Owned(Protocol):
    """A function of some owners, none of which it keeps alive."""

    @property
    def shape(self) -> Hashable | None:
        """Functions of equal shapes differ in nothing but what is in their tensors; None equals no other."""

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """As `Recording` calls it."""

    def take_over(self, other: Any) -> None:
        """Goes on with the tensors of another of its shape, which hold from now on what its own do."""


class Recordings:
    """Recordings by their owners, in one pool; the least recently used makes room.

    One whose owners are gone, or have changed, goes on with the next function of its shape.
    """

    def __init__(self, device: torch.device, limit: int) -> None:
        self._limit = limit
        self.pool = Pool(device)
        self._kept: OrderedDict[tuple[int, ...], _Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def call(self, owners: Sequence[Owner], make: Callable[[], Owned], inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """What the function of these owners returns; `make` makes it where it is not kept."""
        key = tuple(owner.revision for owner in owners)
        if key not in self._kept:
            self._kept[key] = self._new(make(), owners)
        self._kept.move_to_end(key)
        kept = self._kept[key]
        return kept.recording(kept.function, *inputs)

    def clear(self) -> None:
        """Lets all of them go, and what they hold."""
        self._kept.clear()

    def _new(self, function: Owned, owners: Sequence[Owner]) -> "_Kept":
        left, recording = self._left_by(function.shape), Recording(self.pool)
        if left is not None:
            function.take_over(left.function)
            recording = left.recording
        while len(self._kept) >= self._limit:
            self._kept.popitem(last=False)
        return _Kept(function, recording, [weakref.ref(owner) for owner in owners])

    def _left_by(self, shape: Hashable | None) -> "_Kept | None":
        """Takes out one of this shape whose owners are no longer what they were; drops those that nobody can take."""
        for key, kept in list(self._kept.items()):
            owners = [reference() for reference in kept.owners]
            if key == tuple(owner and owner.revision for owner in owners):
                continue
            if kept.function.shape is None or kept.recording.failed:
                del self._kept[key]
            elif kept.function.shape == shape:
                return self._kept.pop(key)
        return None


class _Kept(NamedTuple):
    function: Owned
    recording: Recording
    owners: Sequence[weakref.ref[Owner]]


class Thing(Protocol):
    """Something with recordings, and with the tensors that these refer to."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""

    @property
    def failed(self) -> bool:
        """Whether something could not be recorded, so that another thing may do better."""


class Loan(Generic[Lent]):
    """What a shelf has lent, for as long as this lives."""

    def __init__(self, thing: Lent) -> None:
        self.thing = thing


class Shelf:
    """Things that go from one user to the next, as they are; of more than `limit` bytes the oldest make room."""

    def __init__(self, device: torch.device, limit: int) -> None:
        self.pool = Pool(device)
        self._limit = limit
        self._left: deque[tuple[Hashable, Any]] = deque()

    def __len__(self) -> int:
        return len(self._left)

    def lend(self, kind: Hashable, make: Callable[[], Lent]) -> Loan[Lent]:
        """One of a kind that others have left, or a new one; left here once the loan is gone, unless it failed."""
        left = self._taken(kind)
        loan: Loan[Lent] = Loan(make() if left is None else left)
        if self.pool.records:
            weakref.finalize(loan, self._leave, kind, loan.thing).atexit = False
        return loan

    def clear(self) -> None:
        """Lets go of what nobody uses."""
        self._left.clear()

    def _leave(self, kind: Hashable, thing: Thing) -> None:
        if thing.failed:
            return
        self._left.append((kind, thing))
        with suppress(IndexError):
            while sum(left.nbytes for _, left in list(self._left)) > self._limit:
                self._left.popleft()

    def _taken(self, kind: Hashable) -> Any:
        for entry in list(self._left):
            if entry[0] == kind:
                with suppress(ValueError):  # loans end in any thread, and what they leave pushes others out
                    self._left.remove(entry)
                    return entry[1]
        return None
