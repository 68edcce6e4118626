"""Coarse to fine: which sizes are worked on, and for how many iterations each."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from nst_engine.networks import NETWORKS
from nst_engine.options import OptionError, StylizeOptions
from nst_engine.pictures import fitted_size

# Below this long side in pixels the deep taps see a handful of positions: nothing to learn there.
MINIMUM_COARSE_SIDE = 64


@dataclass(frozen=True)
class Scale:
    """One stage of the schedule: `number` from 1, and the iterations [first, last) it owns."""

    number: int
    height: int
    width: int
    long_side: int
    first: int
    last: int


def plan(
    content_height: int, content_width: int, options: StylizeOptions, ends: Sequence[int] | None = None
) -> tuple[Scale, ...]:
    """The scales of a job, coarsest first.

    The last works at a long side of exactly `options.size`, each one before at half the next.
    Scales under 64 px are left out, and there are never more scales than iterations. Iterations
    are shared evenly; what does not divide goes to the coarsest scales, where it is cheapest.

    Args:
        content_height, content_width: in pixels.
        options: how to stylise.
        ends: the last iterations of the scales of a run in progress, which need not be what was planned.

    Raises:
        OptionError: at this size the short side would vanish inside the network.
    """
    minimum = NETWORKS[options.model].minimum_side(named_taps(options))
    short, long = sorted((content_height, content_width))
    if round(short * options.size / long) < minimum:
        raise OptionError(
            "size",
            f"a {content_width}x{content_height} content at a long side of {options.size} is "
            f"{round(short * options.size / long)} px short, and the taps in use need {minimum}: "
            f"set size to at least {-(-minimum * long // short)}, or crop the content",
        )
    sides = [options.size // 2**step for step in range(options.scales)]
    sides = [side for side in sides if side == options.size or side >= MINIMUM_COARSE_SIDE]
    sides = sides[: options.iterations if ends is None else len(ends)]
    sides.reverse()
    scales = [
        Scale(number, *fitted_size(content_height, content_width, side, minimum), side, first=0, last=0)
        for number, side in enumerate(sides, start=1)
    ]
    return with_ends(scales, _even_ends(options.iterations, len(sides)) if ends is None else ends)


def with_ends(scales: Sequence[Scale], ends: Iterable[int]) -> tuple[Scale, ...]:
    """The scales with these last iterations, each beginning where the one before ends."""
    rescheduled, first = [], 0
    for scale, last in zip(scales, ends, strict=True):
        rescheduled.append(replace(scale, first=first, last=last))
        first = last
    return tuple(rescheduled)


def cut(scales: Sequence[Scale], number: int, iteration: int) -> tuple[Scale, ...]:
    """The scales when scale `number` ends at `iteration`: the iterations it leaves undone fall away."""
    spared = scales[number - 1].last - iteration
    return with_ends(scales, (scale.last - spared * (scale.number >= number) for scale in scales))


def with_total(scales: Sequence[Scale], iterations: int) -> tuple[Scale, ...]:
    """The scales when all is done at `iterations`: more go to the last scale, and fewer are taken from its end on."""
    return with_ends(scales, [*(min(scale.last, iterations) for scale in scales[:-1]), iterations])


def _even_ends(iterations: int, scales: int) -> list[int]:
    share, rest = divmod(iterations, scales)
    return [share * number + min(number, rest) for number in range(1, scales + 1)]


def named_taps(options: StylizeOptions) -> list[str]:
    """Taps with a weight, be it 0, from shallow to deep: those that a run has targets for, however it is steered."""
    named = {*options.content_layers, *options.style_layers}
    return [tap for tap in NETWORKS[options.model].taps if tap in named]


def taps_in_use(options: StylizeOptions) -> list[str]:
    """Taps with a weight above 0, from shallow to deep."""
    weights = {**options.content_layers}
    for tap, weight in options.style_layers.items():
        weights[tap] = weights.get(tap, 0.0) + weight
    return [tap for tap in NETWORKS[options.model].taps if weights.get(tap, 0.0) > 0]
