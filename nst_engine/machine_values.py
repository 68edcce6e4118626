"""What compiled loops compute with: operators write operations down, as `machine_code` explains."""

from typing import Any, Self

from llvmlite import ir

from nst_engine.lanes import LANES

# A product and the sum it goes into may be rounded as one.
_CONTRACT = ("contract",)
FLOAT, WHOLE, NUMBER, BYTE, BIT = ir.FloatType(), *map(ir.IntType, (64, 32, 8, 1))
ADDRESS = ir.PointerType()
GROUP = ir.VectorType(FLOAT, LANES)
SMALL_GROUP = ir.VectorType(BYTE, LANES)
NOTHING = GROUP([0.0] * LANES)
PREFETCH, SUM = "llvm.prefetch.p0", f"llvm.vector.reduce.fadd.v{LANES}f32"

_FLOAT_BYTES = 4
_FOR_LOADS = 0, 3, 1  # not for stores, into all caches, and of data


def whole(number: "Whole | int") -> Any:
    """Its value in the code."""
    return number.value if isinstance(number, Whole) else WHOLE(number)


class Whole:
    """A whole number."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    def _with(self, operation: str, other: "Whole | int") -> "Whole":
        return Whole(self.builder, getattr(self.builder, operation)(self.value, whole(other)))

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

    def __mod__(self, other: "Whole | int") -> "Whole":
        return self._with("srem", other)

    def ceil_div(self, size: "Whole | int") -> "Whole":
        """Into how many parts this falls of which none is larger than `size`."""
        return (self + (size - 1)) // size

    def at_most(self, other: "Whole | int") -> "Whole":
        """The smaller of the two."""
        smaller = self.builder.icmp_signed("<", self.value, whole(other))
        return Whole(self.builder, self.builder.select(smaller, self.value, whole(other)))

    def within(self, end: "Whole") -> "Condition":
        """That this is at least 0 and before `end`."""
        return Condition(self.builder, self.builder.icmp_unsigned("<", self.value, end.value))


class Condition:
    """Whether something holds, once or in each lane."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    def __and__(self, other: "Condition") -> "Condition":
        return Condition(self.builder, self.builder.and_(self.value, other.value))

    def __or__(self, other: "Condition") -> "Condition":
        return Condition(self.builder, self.builder.or_(self.value, other.value))


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
        return other.where(self.below(other), self)

    def below(self, other: "Floats") -> Condition:
        """That each is less than the other, which nothing is that is not a number."""
        return Condition(self.builder, self.builder.fcmp_ordered("<", self.value, other.value))

    def equals(self, number: float) -> Condition:
        """That each is that number."""
        return Condition(self.builder, self.builder.fcmp_ordered("==", self.value, GROUP([number] * LANES)))

    def comes_through_relu(self) -> Condition:
        """That it is more than 0, or not a number."""
        return Condition(self.builder, self.builder.fcmp_unordered(">", self.value, NOTHING))

    def is_no_number(self) -> Condition:
        """That it is not a number."""
        return Condition(self.builder, self.builder.fcmp_unordered("uno", self.value, self.value))

    def where(self, condition: Condition, other: "Floats") -> "Floats":
        """Each of these, or else of the others."""
        return Floats(self.builder, self.builder.select(condition.value, self.value, other.value))


class _Place:
    """Where numbers of a kind are."""

    kind: Any

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    def at(self, index: Whole | int) -> Self:
        """Where the number of this index is."""
        return type(self)(self.builder, self.builder.gep(self.value, [whole(index)], source_etype=self.kind))

    def where(self, condition: Condition, other: Self) -> Self:
        """This, or else the other one."""
        return type(self)(self.builder, self.builder.select(condition.value, self.value, other.value))


class Bytes(_Place):
    """Where whole numbers from 0 to 255 are."""

    kind = BYTE

    def load(self) -> Floats:
        """The `LANES` numbers from here on."""
        small = self.builder.load(self.value, typ=SMALL_GROUP, align=1)
        return Floats(self.builder, self.builder.uitofp(small, GROUP))

    def store(self, floats: Floats) -> None:
        """Writes them from here on; any that is not from 0 to 255 becomes whatever."""
        self.builder.store(self.builder.fptoui(floats.value, SMALL_GROUP), self.value, align=1)


class Pointer(_Place):
    """Where floats are."""

    kind = FLOAT

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

    def store_sum(self, floats: Floats) -> None:
        """Writes the sum of its lanes here."""
        add = self.builder.module.globals[SUM]
        total = self.builder.call(add, [FLOAT(0.0), floats.value], fastmath=("reassoc",))
        self.builder.store(total, self.value, align=_FLOAT_BYTES)

    def scatter(self, floats: Floats, stride: Whole) -> None:
        """Writes the first of them here, and each of the others so far from the one before."""
        for lane in range(LANES):
            number = self.builder.extract_element(floats.value, NUMBER(lane))
            self.builder.store(number, self.at(stride * lane).value, align=_FLOAT_BYTES)

    def as_bytes(self) -> Bytes:
        """The same place, for other numbers."""
        return Bytes(self.builder, self.value)

    def fetch(self) -> None:
        """Has what is here brought into the core's cache, for loads to come; it may be outside of a tensor."""
        self.builder.call(self.builder.module.globals[PREFETCH], [self.value, *map(NUMBER, _FOR_LOADS)])
