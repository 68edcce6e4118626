"""What compiled loops compute with: operators write operations down, as `machine_code` explains."""

from typing import Any

from llvmlite import ir

from nst_engine.lanes import LANES

# A product and the sum it goes into may be rounded as one.
_CONTRACT = ("contract",)
FLOAT, WHOLE, NUMBER, BIT = ir.FloatType(), *map(ir.IntType, (64, 32, 1))
ADDRESS = ir.PointerType()
GROUP = ir.VectorType(FLOAT, LANES)
NOTHING = GROUP([0.0] * LANES)
PREFETCH = "llvm.prefetch.p0"

_FLOAT_BYTES = 4
_FOR_LOADS = 0, 3, 1  # not for stores, into all caches, and of data


class Whole:
    """A whole number."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    def _with(self, operation: str, other: "Whole | int") -> "Whole":
        value = other.value if isinstance(other, Whole) else WHOLE(other)
        return Whole(self.builder, getattr(self.builder, operation)(self.value, value))

    def __rfloordiv__(self, other: int) -> "Whole":
        return Whole(self.builder, WHOLE(other)) // self

    def __add__(self, other: "Whole | int") -> "Whole":
        return self._with("add", other)

    def __sub__(self, other: "Whole | int") -> "Whole":
        return self._with("sub", other)

    def __rsub__(self, other: int) -> "Whole":
        return Whole(self.builder, WHOLE(other)) - self

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
        return Floats(self.builder, getattr(self.builder, operation)(self.value, value, flags=_CONTRACT))

    def __add__(self, other: "Floats") -> "Floats":
        return self._with("fadd", other.value)

    def __sub__(self, other: "Floats") -> "Floats":
        return self._with("fsub", other.value)

    def __rmul__(self, factor: float) -> "Floats":
        return self._with("fmul", GROUP([factor] * LANES))

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
        place = index.value if isinstance(index, Whole) else WHOLE(index)
        return Pointer(self.builder, self.builder.gep(self.value, [place], source_etype=FLOAT))

    def load(self) -> Floats:
        """The `LANES` floats from here on."""
        return Floats(self.builder, self.builder.load(self.value, typ=GROUP, align=_FLOAT_BYTES))

    def load_repeated(self) -> Floats:
        """The float that is here, in every lane."""
        number = self.builder.load(self.value, typ=FLOAT, align=_FLOAT_BYTES)
        first = self.builder.insert_element(GROUP(ir.Undefined), number, NUMBER(0))
        everywhere = ir.VectorType(NUMBER, LANES)([0] * LANES)
        return Floats(self.builder, self.builder.shuffle_vector(first, first, everywhere))

    def store(self, floats: Floats) -> None:
        """Writes them from here on."""
        self.builder.store(floats.value, self.value, align=_FLOAT_BYTES)

    def scatter(self, floats: Floats, stride: Whole) -> None:
        """Writes the first of them here, and each of the others so far from the one before."""
        for lane in range(LANES):
            number = self.builder.extract_element(floats.value, NUMBER(lane))
            self.builder.store(number, self.at(stride * lane).value, align=_FLOAT_BYTES)

    def fetch(self) -> None:
        """Has what is here brought into the core's cache, for loads to come; it may be outside of a tensor."""
        self.builder.call(self.builder.module.globals[PREFETCH], [self.value, *map(NUMBER, _FOR_LOADS)])

    def where(self, condition: Condition, other: "Pointer") -> "Pointer":
        """This, or else the other one."""
        return Pointer(self.builder, self.builder.select(condition.value, self.value, other.value))
