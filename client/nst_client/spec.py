"""What a job is made from: the caller's arguments, checked and turned into messages."""

import math
import numbers
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from google.protobuf.duration_pb2 import Duration

from nst.v1 import job_pb2
from nst_client.formats import Format, format_message
from nst_client.images import ImageInput, ImageRef
from nst_client.options import enum_number, set_scalar

Priority = Literal["interactive", "batch"]
Source = ImageInput | ImageRef
LONGEST_SECONDS = 1e9  # what a server allows is less by far, and the message holds no more than ten times that


@dataclass(frozen=True)
class Style:
    """A picture whose look is taken, and where it goes.

    Attributes:
        image: the picture, in any form that the content may have.
        weight: its share relative to the other styles of the same region, above 0; None is the
            server's default.
        region: where on the content the style goes, as a picture or array (height, width) of any size that the
            server takes: white (True in an array of bool) where it goes, black where not, grey at soft edges.
            None is everywhere.
        source_region: likewise what part of the style picture is taken. None is all of it.
        scale: the size at which the style is looked at, its long side relative to the result's: strokes and
            shapes grow with it. None is the server's default.
    """

    image: Source
    weight: float | None = None
    region: Source | None = None
    source_region: Source | None = None
    scale: float | None = None


StyleInput = Source | tuple[Source, float] | Style


def priority_number(priority: Priority | None) -> job_pb2.Priority.ValueType:
    """The number of a priority; None is the server's default. Raises ValueError for an unknown one."""
    if priority is None:
        return job_pb2.PRIORITY_UNSPECIFIED
    return job_pb2.Priority.ValueType(enum_number("priority", job_pb2.Priority.DESCRIPTOR, priority))


def preview_options(interval: int | None, max_size: int | None, form: Format | None) -> job_pb2.PreviewOptions:
    """The message for previews; None is the server's default.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind; the text names it.
    """
    message = job_pb2.PreviewOptions(format=format_message(form, "preview_format"))
    for name, value in (("interval", interval), ("max_size", max_size)):
        if value is not None:
            set_scalar(message, name, value, f"preview_{name}")
    return message


def time_limit_message(seconds: float | None) -> Duration | None:
    """The message for a time limit; None is none.

    Raises:
        TypeError, ValueError: it is no number above 0.
    """
    if seconds is None:
        return None
    _check_above_zero("time_limit", seconds, LONGEST_SECONDS, " seconds")
    message = Duration()
    message.FromNanoseconds(math.ceil(float(seconds) * 1e9))
    return message


def read_styles(styles: Any, *, needed: bool = True) -> list[Style]:
    """The styles in the one form that has everything.

    Raises:
        TypeError, ValueError: there is no style where one is needed, or a weight or a scale is no number above 0.
    """
    many = isinstance(styles, Sequence) and not isinstance(styles, str | bytes | bytearray | memoryview)
    given = list(styles) if many and not _is_pair(styles) else [styles]
    if needed and not given:
        raise ValueError("styles: give at least one style picture, or a hole to fill")
    read = [_read_style(style) for style in given]
    for index, style in enumerate(read):
        for name, number in (("weight", style.weight), ("scale", style.scale)):
            if number is not None:
                _check_above_zero(f"styles[{index}].{name}", number)
    return read


def _check_above_zero(name: str, number: float, largest: float = sys.float_info.max, unit: str = "") -> None:
    if isinstance(number, bool) or not isinstance(number, numbers.Real):
        raise TypeError(f"{name}: must be a number, not {number!r}")
    if not 0 < float(number) <= largest:  # numpy's small floats cannot be compared with large ones
        raise ValueError(f"{name}: must be above 0 and at most {largest:g}{unit}, not {number:g}")


def _read_style(style: Any) -> Style:
    if isinstance(style, Style):
        return style
    return Style(*style) if _is_pair(style) else Style(style)


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], numbers.Real)
