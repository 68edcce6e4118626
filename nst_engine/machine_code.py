"""Loops compiled by LLVM for this processor, and shared by the threads that torch computes in.

A function such as `def double(code: Code, source: Pointer, target: Pointer, count: Whole) -> None` is called once, to
write down what the threads are to do: its arguments stand for those of later runs, and operators on them for
operations (`machine_values`). Several may come as one named tuple. A loop of Python's own is unrolled; those that are
to run are `Code.loop`, `Code.shared`, `Code.dealt` and `Code.accumulate`. Whether places are inside of a tensor is for
the function to see to.
"""

import ctypes
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, get_type_hints

import torch
from llvmlite import binding as llvm
from llvmlite import ir
from torch import Tensor

from nst_engine.lanes import LANES
from nst_engine.machine_values import (
    ADDRESS,
    BIT,
    FLOAT,
    GROUP,
    NOTHING,
    NUMBER,
    PREFETCH,
    SUM,
    WHOLE,
    Bytes,
    Floats,
    Pointer,
    Whole,
    whole,
)
from nst_engine.threads import gnu_threads

_NONE = ir.VoidType()
_DTYPES = {Pointer: torch.float32, Bytes: torch.uint8}
_THREAD, _THREADS, _BARRIER = "omp_get_thread_num", "omp_get_num_threads", "GOMP_barrier"


class Code:
    """What one of the threads does."""

    def __init__(self, builder: Any, thread: Whole, threads: Whole, barrier: Any, alone: Any) -> None:
        self._builder, self._thread, self._threads = builder, thread, threads
        self._barrier, self._alone = barrier, alone

    def scratch(self, count: Whole) -> Pointer:
        """Room for floats, of the thread's own, until it is done."""
        room = self._builder.alloca(FLOAT, size=count.value)
        # By way of a number: llvmlite takes what comes of alloca to be for single floats only.
        return Pointer(self._builder, self._builder.inttoptr(self._builder.ptrtoint(room, WHOLE), ADDRESS))

    def filled(self, number: float) -> Floats:
        """That number in every lane."""
        return Floats(self._builder, GROUP([number] * LANES))

    @contextmanager
    def when(self, condition: Whole) -> Iterator[None]:
        """What is written inside is done where it is 1, and not where it is 0."""
        with self._builder.if_then(self._builder.trunc(condition.value, BIT)):
            yield

    def divided(self, apart: Whole) -> "tuple[Code, Code]":
        """Who shares pieces of work out, and who the work on one of them.

        Where `apart` is 1 each thread does pieces of its own alone, and where it is 0 all do one after the other
        together. It is the same for all threads.
        """
        return self._alone_where(1 - apart), self._alone_where(apart)

    def _alone_where(self, condition: Whole) -> "Code":
        """Where it is 1, what the thread does alone: all that is shared is its own, and it waits for nobody."""
        builder = self._builder
        alone = builder.or_(self._alone, builder.trunc(condition.value, BIT))
        thread = Whole(builder, builder.select(alone, WHOLE(0), self._thread.value))
        threads = Whole(builder, builder.select(alone, WHOLE(1), self._threads.value))
        return Code(builder, thread, threads, self._barrier, alone)

    def own(self, room: Pointer, floats: Whole) -> Pointer:
        """The thread's part of room for so many floats each, and the first one where it is alone."""
        return room.at(self._thread * floats)

    def shared(self, count: Whole) -> Any:
        """A loop over this thread's part of the whole numbers from 0 to before `count`."""
        return self.loop(count * self._thread // self._threads, count * (self._thread + 1) // self._threads)

    def dealt(self, count: Whole) -> Any:
        """As `shared`, for work that differs from one number to the next: each of n threads has every n-th."""
        return self.loop(self._thread, count, self._threads)

    def wait_for_all(self) -> None:
        """The threads go on together, but for one that is alone. All of them come here, equally often."""
        with self._builder.if_then(self._builder.not_(self._alone)):
            self._builder.call(self._barrier, [])

    @contextmanager
    def loop(self, start: Whole | int, end: Whole | int, step: Whole | int = 1) -> Iterator[Whole]:
        """What is written inside is done for the whole numbers from `start` to before `end`."""
        builder = self._builder
        first, last, stride = map(whole, (start, end, step))
        before, body, after = builder.block, builder.append_basic_block("body"), builder.append_basic_block("after")
        builder.cbranch(builder.icmp_signed("<", first, last), body, after)
        builder.position_at_end(body)
        index = builder.phi(WHOLE)
        index.add_incoming(first, before)
        yield Whole(builder, index)
        following = builder.add(index, stride)
        index.add_incoming(following, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, last), body, after)
        builder.position_at_end(after)

    def accumulate(
        self, count: Whole, sums: int, add: Callable[[Whole, Sequence[Floats]], Sequence[Floats]]
    ) -> Sequence[Floats]:
        """So many sums, from 0 on, after `add` has given what becomes of them for each number from 0 to before `count`.

        They are in registers meanwhile.
        """
        before = self._builder.block
        with self.loop(0, count) as index:
            so_far = [self._builder.phi(GROUP) for _ in range(sums)]
            for each in so_far:
                each.add_incoming(NOTHING, before)
            added = add(index, [Floats(self._builder, each) for each in so_far])
            for each, sum_ in zip(so_far, added, strict=True):
                each.add_incoming(sum_.value, self._builder.block)
            last = self._builder.block
        ended = [self._builder.phi(GROUP) for _ in range(sums)]
        for each, sum_ in zip(ended, added, strict=True):
            each.add_incoming(NOTHING, before)
            each.add_incoming(sum_.value, last)
        return [Floats(self._builder, each) for each in ended]


class Program:
    """Functions that write code, compiled.

    Raises:
        OSError: see `gnu_threads`.
    """

    def __init__(self, *writers: Callable[..., None]) -> None:
        self._openmp = gnu_threads()
        module = ir.Module("nst")
        for name, kind in ((_THREAD, NUMBER), (_THREADS, NUMBER), (_BARRIER, _NONE)):
            ir.Function(module, ir.FunctionType(kind, []), name)
            llvm.add_symbol(name, ctypes.cast(self._openmp[name], ctypes.c_void_p).value)
        ir.Function(module, ir.FunctionType(_NONE, [ADDRESS, NUMBER, NUMBER, NUMBER]), PREFETCH)
        ir.Function(module, ir.FunctionType(FLOAT, [FLOAT, GROUP]), SUM)
        for writer in writers:
            _write(module, writer)
        self._kinds = {writer: list(_flat(_parameters(writer))) for writer in writers}
        # It is the compiled code's owner.
        self._compiled = _compiled(str(module))
        self._addresses = {writer: self._compiled.get_function_address(writer.__name__) for writer in writers}

    def run(self, writer: Callable[..., None], *arguments: Tensor | int) -> None:
        """Has torch's threads do what was written.

        Args:
            writer: one that was compiled.
            arguments: for its parameters after the first: tensors for places, contiguous, on the CPU, and in float32
                or for `Bytes` uint8, and whole numbers. Room for each thread is for as many as `torch.get_num_threads`
                says.

        Raises:
            TypeError: they are none of these.
            ValueError: there are more or fewer than parameters.
        """
        given = [_given(kind, each) for kind, each in zip(self._kinds[writer], arguments, strict=True)]
        values = (ctypes.c_int64 * len(given))(*given)
        self._openmp.GOMP_parallel(self._addresses[writer], ctypes.addressof(values), torch.get_num_threads(), 0)


def _parameters(writer: Callable[..., None]) -> list[Any]:
    """What they are after the first one."""
    return [each.annotation for each in inspect.signature(writer, eval_str=True).parameters.values()][1:]


def _flat(kinds: Iterable[Any]) -> Iterator[Any]:
    """With what is in a named tuple instead of it: `Pointer`, `Bytes` or `Whole`."""
    for kind in kinds:
        yield from _flat(get_type_hints(kind).values()) if issubclass(kind, tuple) else (kind,)


def _argument(builder: Any, kind: Any, values: Iterator[Any]) -> Any:
    if issubclass(kind, tuple):
        return kind(*(_argument(builder, each, values) for each in get_type_hints(kind).values()))
    value = next(values)
    return kind(builder, value if kind is Whole else builder.inttoptr(value, ADDRESS))


def _given(kind: Any, argument: Tensor | int) -> int:
    if kind is Whole and isinstance(argument, int):
        return argument
    if (
        isinstance(argument, Tensor)
        and argument.dtype == _DTYPES.get(kind)
        and argument.device.type == "cpu"
        and argument.is_contiguous()
    ):
        return argument.data_ptr()
    raise TypeError(f"arguments: {_described(argument)} is no {kind.__name__}")


def _described(argument: Tensor | int) -> str:
    if not isinstance(argument, Tensor):
        return repr(argument)
    kind = f"{'' if argument.is_contiguous() else 'strided '}{argument.dtype} on {argument.device.type}"
    return f"a tensor {tuple(argument.shape)} of {kind}"


def _write(module: Any, writer: Callable[..., None]) -> None:
    """A function that takes the address of its arguments, as OpenMP has it."""
    function = ir.Function(module, ir.FunctionType(_NONE, [ADDRESS]), writer.__name__)
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    thread, threads = (
        Whole(builder, builder.sext(builder.call(module.globals[name], []), WHOLE)) for name in (_THREAD, _THREADS)
    )
    values = (
        builder.load(builder.gep(function.args[0], [WHOLE(place)], source_etype=WHOLE), typ=WHOLE) for place in count()
    )
    code = Code(builder, thread, threads, module.globals[_BARRIER], BIT(0))
    writer(code, *(_argument(builder, kind, values) for kind in _parameters(writer)))
    builder.ret_void()


def _compiled(text: str) -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(text)
    module.verify()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(module, passes)
    compiled = llvm.create_mcjit_compiler(module, machine)
    compiled.finalize_object()
    return compiled
