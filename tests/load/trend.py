"""Whether a figure grows: a least-squares line and how sure it is."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeVar

T = TypeVar("T")

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Trend:
    """The line through points.

    Attributes:
        mean: of the ordinates.
        slope: per unit of the abscissa.
        error: the slope's standard error; infinite for fewer than three points.
    """

    mean: float
    slope: float
    error: float

    def at_most(self, limit: float) -> bool | None:
        """Whether the slope is no steeper; None where two standard errors leave both open."""
        if self.slope + 2 * self.error <= limit:
            return True
        return False if self.slope - 2 * self.error > limit else None


def trend(points: Points) -> Trend:
    """The least-squares line through at least one point."""
    mean_x, mean_y = fmean(x for x, _ in points), fmean(y for _, y in points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    if len(points) < 3 or not spread:
        return Trend(mean_y, 0.0, math.inf)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    rest = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    return Trend(mean_y, slope, math.sqrt(rest / (len(points) - 2) / spread))


def by_minute(points: Points) -> list[tuple[float, float]]:
    """The mean of each minute of points (seconds, value): neighbouring samples are hardly independent."""
    minutes: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for seconds, value in points:
        minutes[int(seconds // 60)].append((seconds, value))
    return [(fmean(x for x, _ in some), fmean(y for _, y in some)) for some in minutes.values()]


def thirds(values: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """The first third and the last, at least one value each."""
    length = max(len(values) // 3, 1)
    return values[:length], values[-length:]
