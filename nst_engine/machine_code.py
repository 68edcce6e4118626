"""Loops compiled by LLVM for this processor, and shared by the threads that torch computes in.

A function such as `def double(code: Code, source: Pointer, target: Pointer, count: Whole) -> None` is called once, to
write down what the threads are to do: its arguments stand for those of later runs, and operators on them for
operations. A loop of Python's own is unrolled; those that are to run are `Code.loop` and `Code.shared`. Whether places
are inside of a tensor is for the function to see to.
"""

import ctypes
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from llvmlite import binding as llvm
from llvmlite import ir
from torch import Tensor

from nst_engine.threads import gnu_threads

# Floats that are worked on at once: those of a register of AVX2. Others have theirs put together or taken apart.
LANES = 8
# A product and the sum it goes into may be rounded as one.
CONTRACT = ("contract",)

_FLOAT, _WHOLE, _NUMBER = ir.FloatType(), ir.IntType(64), ir.IntType(32)
_ADDRESS, _NONE = ir.PointerType(), ir.VoidType()
_LANES = ir.VectorType(_FLOAT, LANES)
_FLOAT_BYTES = 4
_PREFETCH = "llvm.prefetch.p0"
_PREFETCH_FOR_LOADS = 0, 3, 1  # not for stores, into all caches, and of data
_THREAD, _THREADS, _BARRIER = "omp_get_thread_num", "omp_get_num_threads", "GOMP_barrier"


class Whole:
    """A whole number."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    def _with(self, operation: str, other: "Whole | int") -> "Whole":
        value = other.value if isinstance(other, Whole) else _WHOLE(other)
        return Whole(self.builder, getattr(self.builder, operation)(self.value, value))

    def __rfloordiv__(self, other: int) -> "Whole":
        return Whole(self.builder, self.builder.sdiv(_WHOLE(other), self.value))

    def __add__(self, other: "Whole | int") -> "Whole":
        return self._with("add", other)

    def __sub__(self, other: "Whole | int") -> "Whole":
        return self._with("sub", other)

    def __mul__(self, other: "Whole | int") -> "Whole":
        return self._with("mul", other)

    def __floordiv__(self, other: "Whole | int") -> "Whole":
        """Towards 0."""
        return self._with("sdiv", other)

    def at_most(self, other: "Whole") -> "Whole":
        """The smaller of the two."""
        smaller = self.builder.icmp_signed("<", self.value, other.value)
        return Whole(self.builder, self.builder.select(smaller, self.value, other.value))

    def within(self, end: "Whole") -> "Condition":
        """That this is at least 0 and before `end`."""
        return Condition(self.builder, self.builder.icmp_unsigned("<", self.value, end.value))


class Condition:
    """Whether something holds."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    def __and__(self, other: "Condition") -> "Condition":
        return Condition(self.builder, self.builder.and_(self.value, other.value))


class Floats:
    """As many floats as there are lanes."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    def _with(self, operation: str, value: Any) -> "Floats":
        return Floats(self.builder, getattr(self.builder, operation)(self.value, value, flags=CONTRACT))

    def __add__(self, other: "Floats") -> "Floats":
        return self._with("fadd", other.value)

    def __sub__(self, other: "Floats") -> "Floats":
        return self._with("fsub", other.value)

    def __rmul__(self, factor: float) -> "Floats":
        return self._with("fmul", _LANES([factor] * LANES))

    def __mul__(self, other: "Floats") -> "Floats":
        return self._with("fmul", other.value)

    def at_least(self, other: "Floats") -> "Floats":
        """The larger of each pair, and what is not a number as it is."""
        smaller = self.builder.fcmp_ordered("<", self.value, other.value)
        return Floats(self.builder, self.builder.select(smaller, other.value, self.value))


class Pointer:
    """Where floats are."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    def at(self, index: Whole | int) -> "Pointer":
        """Where the float of this index is."""
        place = index.value if isinstance(index, Whole) else _WHOLE(index)
        return Pointer(self.builder, self.builder.gep(self.value, [place], source_etype=_FLOAT))

    def load(self) -> Floats:
        """The `LANES` floats from here on."""
        return Floats(self.builder, self.builder.load(self.value, typ=_LANES, align=_FLOAT_BYTES))

    def load_repeated(self) -> Floats:
        """The float that is here, in every lane."""
        number = self.builder.load(self.value, typ=_FLOAT, align=_FLOAT_BYTES)
        first = self.builder.insert_element(_LANES(ir.Undefined), number, _NUMBER(0))
        everywhere = ir.VectorType(_NUMBER, LANES)([0] * LANES)
        return Floats(self.builder, self.builder.shuffle_vector(first, first, everywhere))

    def store(self, floats: Floats) -> None:
        """Writes them from here on."""
        self.builder.store(floats.value, self.value, align=_FLOAT_BYTES)

    def fetch(self) -> None:
        """Has what is here brought into the core's cache, for loads to come; it may be outside of a tensor."""
        self.builder.call(self.builder.module.globals[_PREFETCH], [self.value, *map(_NUMBER, _PREFETCH_FOR_LOADS)])

    def where(self, condition: Condition, other: "Pointer") -> "Pointer":
        """This, or else the other one."""
        return Pointer(self.builder, self.builder.select(condition.value, self.value, other.value))


class Code:
    """What one of the threads does."""

    def __init__(self, builder: Any, thread: Whole, threads: Whole, barrier: Any) -> None:
        self._builder, self._thread, self._threads, self._barrier = builder, thread, threads, barrier

    def scratch(self, count: Whole) -> Pointer:
        """Room for floats, of the thread's own, until it is done."""
        room = self._builder.alloca(_FLOAT, size=count.value)
        # By way of a number: llvmlite takes what comes of alloca to be for single floats only.
        return Pointer(self._builder, self._builder.inttoptr(self._builder.ptrtoint(room, _WHOLE), _ADDRESS))

    def alone(self) -> "Code":
        """What the thread does by itself: all that is shared is its own, and there is nobody to wait for."""
        return Code(self._builder, Whole(self._builder, _WHOLE(0)), Whole(self._builder, _WHOLE(1)), None)

    def own(self, room: Pointer, floats: Whole) -> Pointer:
        """The thread's part of room for so many floats each."""
        return room.at(self._thread * floats)

    def shared(self, count: Whole) -> Any:
        """A loop over this thread's part of the whole numbers from 0 to before `count`."""
        return self.loop(count * self._thread // self._threads, count * (self._thread + 1) // self._threads)

    def dealt(self, count: Whole) -> Any:
        """As `shared`, for work that differs from one number to the next: each thread has every so manieth."""
        return self.loop(self._thread, count, self._threads)

    def wait_for_all(self) -> None:
        """The threads go on together. All of them come here, equally often."""
        if self._barrier is not None:
            self._builder.call(self._barrier, [])

    @contextmanager
    def loop(self, start: Whole | int, end: Whole, step: Whole | int = 1) -> Iterator[Whole]:
        """What is written inside is done for the whole numbers from `start` to before `end`."""
        builder = self._builder
        first, stride = (each.value if isinstance(each, Whole) else _WHOLE(each) for each in (start, step))
        before, body, after = builder.block, builder.append_basic_block("body"), builder.append_basic_block("after")
        builder.cbranch(builder.icmp_signed("<", first, end.value), body, after)
        builder.position_at_end(body)
        index = builder.phi(_WHOLE)
        index.add_incoming(first, before)
        yield Whole(builder, index)
        following = builder.add(index, stride)
        index.add_incoming(following, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, end.value), body, after)
        builder.position_at_end(after)

    def accumulate(
        self, count: Whole, sums: int, add: Callable[[Whole, Sequence[Floats]], Sequence[Floats]]
    ) -> Sequence[Floats]:
        """So many sums, from 0 on, after `add` has given what becomes of them for each number from 0 to before `count`.

        They are in registers meanwhile.
        """
        before = self._builder.block
        with self.loop(0, count) as index:
            so_far = [self._builder.phi(_LANES) for _ in range(sums)]
            for each in so_far:
                each.add_incoming(_LANES([0.0] * LANES), before)
            added = add(index, [Floats(self._builder, each) for each in so_far])
            for each, sum_ in zip(so_far, added, strict=True):
                each.add_incoming(sum_.value, self._builder.block)
            last = self._builder.block
        ended = [self._builder.phi(_LANES) for _ in range(sums)]
        for each, sum_ in zip(ended, added, strict=True):
            each.add_incoming(_LANES([0.0] * LANES), before)
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
        for name, kind in ((_THREAD, _NUMBER), (_THREADS, _NUMBER), (_BARRIER, _NONE)):
            ir.Function(module, ir.FunctionType(kind, []), name)
            llvm.add_symbol(name, ctypes.cast(self._openmp[name], ctypes.c_void_p).value)
        ir.Function(module, ir.FunctionType(_NONE, [_ADDRESS, _NUMBER, _NUMBER, _NUMBER]), _PREFETCH)
        self._kinds = {writer: _kinds(writer) for writer in writers}
        for writer, kinds in self._kinds.items():
            _write(module, writer, kinds)
        # It is the compiled code's owner.
        self._compiled = _compiled(str(module))
        self._addresses = {writer: self._compiled.get_function_address(writer.__name__) for writer in writers}

    def run(self, writer: Callable[..., None], *arguments: Tensor | int) -> None:
        """Has torch's threads do what was written.

        Args:
            writer: one that was compiled.
            arguments: for its parameters after the first: tensors for pointers, contiguous, float32 and on the CPU,
                and whole numbers.

        Raises:
            TypeError: they are none of these.
            ValueError: there are more or fewer than parameters.
        """
        given = [_given(kind, each) for kind, each in zip(self._kinds[writer], arguments, strict=True)]
        values = (ctypes.c_int64 * len(given))(*given)
        self._openmp.GOMP_parallel(self._addresses[writer], ctypes.addressof(values), torch.get_num_threads(), 0)


def _kinds(writer: Callable[..., None]) -> list[Any]:
    """What its parameters are, `Pointer` or `Whole`, after the first one."""
    return [each.annotation for each in inspect.signature(writer, eval_str=True).parameters.values()][1:]


def _given(kind: Any, argument: Tensor | int) -> int:
    if kind is Whole and isinstance(argument, int):
        return argument
    if (
        kind is Pointer
        and isinstance(argument, Tensor)
        and argument.dtype == torch.float32
        and argument.device.type == "cpu"
        and argument.is_contiguous()
    ):
        return argument.data_ptr()
    raise TypeError(f"arguments: {argument!r:.60} is no {kind.__name__}")


def _write(module: Any, writer: Callable[..., None], kinds: Sequence[Any]) -> None:
    """A function that takes the address of its arguments, as OpenMP has it."""
    function = ir.Function(module, ir.FunctionType(_NONE, [_ADDRESS]), writer.__name__)
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    thread, threads = (
        Whole(builder, builder.sext(builder.call(module.globals[name], []), _WHOLE)) for name in (_THREAD, _THREADS)
    )
    arguments = []
    for place, kind in enumerate(kinds):
        address = builder.gep(function.args[0], [_WHOLE(place)], source_etype=_WHOLE)
        value = builder.load(address, typ=_WHOLE)
        arguments.append(kind(builder, builder.inttoptr(value, _ADDRESS) if kind is Pointer else value))
    writer(Code(builder, thread, threads, module.globals[_BARRIER]), *arguments)
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
