"""Kinds of argument that click does not have."""

import math
from typing import Any

import click

# The largest numbers that the protocol's fields hold.
UINT32_MAX, UINT64_MAX = 2**32 - 1, 2**64 - 1


class AboveZero(click.FloatRange):
    """A number above 0 that is one: click's own range lets NaN pass, and infinity."""

    def __init__(self, most: float | None = None) -> None:
        super().__init__(min=0, min_open=True, max=most)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number", param, ctx)
        return number


class Text(click.ParamType[str]):
    """Text that can be sent: the bytes that a shell passes need not be any."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text."""
        text = str(value)
        try:
            text.encode()
        except UnicodeEncodeError:
            self.fail(f"{text!r} is not UTF-8", param, ctx)
        return text
