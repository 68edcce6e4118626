"""Messages and bytes as nobody should send them, from a seeded generator."""

import math
import random
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)

NUMBERS = (0.0, -0.0, 0.5, 1.0, 2.0, -1.0, 1e-300, 1e300, math.inf, -math.inf, math.nan)
COUNTS = (0, 1, 2, 3, 16, 17, 32, 33, 64, 65, 2**31 - 1, 2**31, 2**32 - 1)
NAMES = ("", "photo", "relu1_1", "relu5_1", "conv4_2", "vgg16-caffe", "resnet50", "0" * 64, "a.b", "*", ">", "\0", "é")


class Fuzz:
    """Draws values; the same seed draws the same."""

    def __init__(self, seed: str, files: tuple[bytes, ...]) -> None:
        """`files` are what bytes fields may hold besides noise."""
        self.rng = random.Random(seed)
        self._files = files

    def message(self, kind: type[M], depth: int = 0) -> M:
        """A message with any of its fields set to anything that they can carry."""
        message = kind()
        share = self.rng.choice((0.1, 0.3, 0.7))
        for field in kind.DESCRIPTOR.fields:
            if self.rng.random() < share:
                self._set(message, field, depth)
        return message

    def _set(self, message: Message, field: FieldDescriptor, depth: int) -> None:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for _ in range(self.rng.randint(0, 3)):
                value[self.text()] = self.rng.choice(NUMBERS)
        elif field.message_type is not None:
            if depth > 5:
                return
            kind = field.message_type._concrete_class
            if field.is_repeated:
                value.extend(self.message(kind, depth + 1) for _ in range(self.rng.randint(0, 4)))
            else:
                value.CopyFrom(self.message(kind, depth + 1))
        elif field.is_repeated:
            value.extend(self._scalar(field) for _ in range(self.rng.randint(0, 5)))
        else:
            setattr(message, field.name, self._scalar(field))

    def _scalar(self, field: FieldDescriptor) -> Any:
        rng = self.rng
        if field.type == FieldDescriptor.TYPE_BOOL:
            return rng.random() < 0.5
        if field.type == FieldDescriptor.TYPE_BYTES:
            return self.data()
        if field.type == FieldDescriptor.TYPE_STRING:
            return self.text()
        if field.type == FieldDescriptor.TYPE_DOUBLE:
            return rng.choice((rng.choice(NUMBERS), rng.uniform(-2, 2), rng.uniform(-1e9, 1e9)))
        if field.type in (FieldDescriptor.TYPE_ENUM, FieldDescriptor.TYPE_INT32):
            return rng.choice((rng.randint(0, 4), rng.randint(-(2**31), 2**31 - 1)))
        wide = field.type in (FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_INT64)
        largest = 2**63 - 1 if wide else 2**31 - 1
        return rng.choice((min(rng.choice(COUNTS), largest), rng.randint(0, 70), rng.randint(0, largest)))

    def text(self) -> str:
        """A name that means something, or does not, or is very long."""
        rng = self.rng
        if rng.random() < 0.6:
            return rng.choice(NAMES)
        length = rng.choice((1, 5, 64, 65, 128, 129, 100_000 if rng.random() < 0.02 else 300))
        return "".join(rng.choice("ab0.*> /\n\u00e9\u4e2d\U0001f600") for _ in range(min(length, 300))) * (
            length // 300 or 1
        )

    def data(self) -> bytes:
        """A picture file, a damaged one, or noise."""
        rng = self.rng
        choice = rng.random()
        if choice < 0.4:
            return rng.choice(self._files)
        if choice < 0.8:
            return self.damaged(rng.choice(self._files))
        return rng.randbytes(rng.randint(0, 300))

    def damaged(self, data: bytes) -> bytes:
        """The bytes with a few of them set, cut off, left out, doubled or put in."""
        rng, changed = self.rng, bytearray(data)
        for _ in range(rng.randint(1, 4)):
            # Headers are where it hurts.
            start = rng.randrange(min(len(changed), rng.choice((64, len(changed)))) + 1) if changed else 0
            kind = rng.randrange(6)
            if kind == 0:
                changed[start : start + 1] = rng.randbytes(1)
            elif kind == 1:
                del changed[start:]
            elif kind == 2:
                del changed[start : start + rng.randint(1, 40)]
            elif kind == 3:
                changed[start:start] = rng.randbytes(rng.randint(1, 40))
            elif kind == 4:
                changed[start:start] = changed[start : start + rng.randint(1, 200)]
            else:
                width = rng.choice((1, 2, 4))
                changed[start : start + width] = rng.choice((b"\x00", b"\xff", b"\x7f", b"\x80")) * width
        return bytes(changed)
