"""How soon the engine has what neural-style-pt's objective and optimiser end with, on the same objective."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from statistics import median

import torch
from clock import timed
from neural_style import OBJECTIVE, NeuralStyle
from pairs import PAIRS, Pair
from processes import RESULTS
from report import Facts, Report

from nst_engine import Engine, Style
from nst_engine.options import StylizeOptions

OPPONENT_ITERATIONS = 300
MEASURED_EVERY = 3  # iterations of the opponent between two looks at its saved picture
TIMED_ITERATIONS = 5  # of the opponent, just before and just after the engine's run
ENGINE_ITERATIONS = 400


@dataclass(frozen=True)
class Ending:
    """What the opponent's 300 iterations end with.

    Attributes:
        saved: the lowest loss of a picture as it would be saved, of those looked at.
        at: the iteration that had it.
        printed: the loss that the opponent prints at the end, of values outside 0-255 too.
    """

    saved: float
    at: int
    printed: float


@dataclass(frozen=True)
class Race:
    """Seconds to each goal, of the engine by its saved picture.

    Attributes:
        opponent: of all iterations of the opponent, which its user waits for.
        opponent_at: of those up to its best saved picture, which nobody knows to be the best before the end.
    """

    pair: Pair
    ending: Ending
    opponent: float
    opponent_at: float
    saved: float | None
    printed: float | None


def measure(facts: Facts, *, quick: bool, size: int) -> list[Report]:
    """Races the six pairs, or two if quick, at a long side of `size`."""
    engine = Engine()
    engine.warm_up(StylizeOptions().model)
    pairs = PAIRS[: 2 if quick else None]
    return [_report(facts, size, [race(engine, pair, size) for pair in pairs])]


def race(engine: Engine, pair: Pair, size: int) -> Race:
    """One pair at one size."""
    content, style = pair.load(size)
    yardstick = NeuralStyle(content, style, engine.device)
    ending = _ending(yardstick, pair, size, engine.device.type)
    opponent = _seconds_per_iteration(yardstick)
    reached: dict[str, float | None] = {"saved": None, "printed": None}
    session = engine.start(content, [Style(style)], _options(size))
    seconds = 0.0
    while not session.finished and reached["printed"] is None:
        seconds += timed(session.advance)[1]
        loss = yardstick.loss_of(session.image())
        for goal, before in reached.items():
            if before is None and loss <= getattr(ending, goal):
                reached[goal] = seconds
    opponent = (opponent + _seconds_per_iteration(yardstick)) / 2
    counts = {OPPONENT_ITERATIONS, ending.at}
    seconds_of = {count: count * opponent + yardstick.history_seconds(count) for count in counts}
    return Race(pair, ending, seconds_of[OPPONENT_ITERATIONS], seconds_of[ending.at], **reached)


def _options(size: int) -> StylizeOptions:
    return StylizeOptions(
        size=size, init="textured", history_size=40, iterations=ENGINE_ITERATIONS, scales=1, **OBJECTIVE
    )


def _seconds_per_iteration(yardstick: NeuralStyle) -> float:
    times = [iterate.seconds for iterate in islice(yardstick.optimise(TIMED_ITERATIONS + 1), TIMED_ITERATIONS + 1)]
    return median(later - earlier for earlier, later in pairwise(times))


def _ending(yardstick: NeuralStyle, pair: Pair, size: int, device: str) -> Ending:
    """Runs the opponent to its end, once: its course does not depend on how fast the machine is."""
    kept = RESULTS / "neural-style" / f"{pair.name} {size} torch {torch.__version__} {device}.json"
    if not kept.is_file():
        ending = min(_endings(yardstick), key=lambda ending: ending.saved)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(asdict(ending)))
    return Ending(**json.loads(kept.read_text()))


def _endings(yardstick: NeuralStyle) -> Iterator[Ending]:
    iterates = list(enumerate(yardstick.optimise(OPPONENT_ITERATIONS), start=1))
    printed = iterates[-1][1].printed
    for number, iterate in iterates:
        if number % MEASURED_EVERY == 0:
            yield Ending(yardstick.loss_of(iterate.picture), number, printed)


def _report(facts: Facts, size: int, races: list[Race]) -> Report:
    report = Report(f"time-to-loss-{size}", f"Time to neural-style-pt's loss, {size} px", facts)
    for race in races:
        ways = {"300 iterations of neural-style-pt": [race.opponent], "its own to its best saved": [race.opponent_at]}
        for way, seconds in (("to its best saved", race.saved), ("to what it prints", race.printed)):
            if seconds is not None:
                ways[way] = [seconds]
        report.add(race.pair.name, "s", "", ways)
    for goal, until, heading, target in (
        ("saved", "opponent", "sooner at its best saved picture than it ends", "median 20, worst 6"),
        ("saved", "opponent_at", "sooner at its best saved picture than it is there", ""),
        ("printed", "opponent", "sooner at the loss that it prints", "median 4, on a GPU 10"),
    ):
        reached = [(getattr(race, until), getattr(race, goal)) for race in races]
        ratios = [opponent / seconds for opponent, seconds in reached if seconds is not None]
        if ratios:
            report.add(heading, "times", target, {f"{len(ratios)} of {len(races)} reached": ratios})
    return report
