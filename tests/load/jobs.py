"""The jobs of a run: what is asked for, when, by which call, and what is done to it on the way."""

import io
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

PICTURES = {
    "china": Path(str(files("sklearn"))) / "datasets" / "images" / "china.jpg",
    "flower": Path(str(files("sklearn"))) / "datasets" / "images" / "flower.jpg",
    "tissue": Path(str(files("skimage"))) / "data" / "ihc.png",
    "gravel": Path(str(files("skimage"))) / "data" / "gravel.png",
}
PICTURE_SIZE = 192
TIME_LIMITS = 1.0, 12.0


class Treatment(StrEnum):
    """What a client does to its job while it runs."""

    NONE = "left alone"
    PAUSE = "paused and resumed"
    STEER = "steered"
    CANCEL = "cancelled"
    PAUSE_CANCEL = "paused and cancelled at once"
    LIMIT = "given too little time, perhaps"
    DELETE = "deleted at its end"


TREATMENTS = (
    Treatment.PAUSE,
    Treatment.STEER,
    Treatment.PAUSE_CANCEL,
    Treatment.LIMIT,
    Treatment.PAUSE,
    Treatment.CANCEL,
    Treatment.DELETE,
    Treatment.LIMIT,
)


@dataclass(frozen=True)
class Work:
    """A stylisation; every job of one work ends in the same picture, unless it is steered or cancelled."""

    content: str
    styles: tuple[str, ...]
    size: int
    iterations: int
    optimizer: str
    strength: float = 0.5

    @property
    def options(self) -> dict[str, Any]:
        """As `AsyncClient.stylize` takes them."""
        names = ("size", "iterations", "optimizer", "strength")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Plan:
    """One job of a run.

    Attributes:
        name: of its request, unique within the run.
        at: seconds after the start of the run at which it is asked for.
        streamed: made by `Stylize` instead of `CreateJob`.
        treatment, treated_at: what is done to it, and after which iteration.
        time_limit: seconds after which it is to end, whatever it has; None for ever.
    """

    name: str
    work: Work
    at: float
    streamed: bool = False
    treatment: Treatment = Treatment.NONE
    treated_at: int = 0
    time_limit: float | None = None

    @property
    def reproducible(self) -> bool:
        """Whether the result must be that of an uncut run of the same work."""
        return self.treatment not in (Treatment.STEER, Treatment.CANCEL, Treatment.PAUSE_CANCEL)


@cache
def picture(name: str) -> bytes:
    """A picture of `PICTURES` as a PNG file, shrunk to `PICTURE_SIZE`."""
    image = Image.open(PICTURES[name]).convert("RGB")
    image.thumbnail((PICTURE_SIZE, PICTURE_SIZE))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def mixed_works(rng: Random, count: int, *, largest: int = 192, longest: int = 60) -> list[Work]:
    """Works of every kind, from 64 px to `largest` and from 10 iterations to `longest`."""
    return [
        Work(
            content=rng.choice(("china", "flower")),
            styles=("tissue", "gravel") if number % 3 == 2 else (rng.choice(("tissue", "gravel")),),
            size=rng.randrange(64, largest + 1, 32),
            iterations=rng.randrange(10, longest + 1, 5),
            optimizer="adam" if number % 3 == 1 else "lbfgs",
        )
        for number in range(count)
    ]


def mixed_jobs(rng: Random, count: int, works: list[Work], seconds: float) -> list[Plan]:
    """Jobs of these works, asked for over so many seconds; eight in ten are treated in one of the ways."""
    plans = []
    for number in range(count):
        work = works[number % len(works)]
        treatment = TREATMENTS[number % 10] if number % 10 < len(TREATMENTS) else Treatment.NONE
        plans.append(
            Plan(
                name=f"job-{number}",
                work=work,
                at=rng.uniform(0, seconds),
                streamed=rng.random() < 0.3,
                treatment=treatment,
                treated_at=rng.randrange(1, work.iterations - 4),
                time_limit=rng.uniform(*TIME_LIMITS) if treatment is Treatment.LIMIT else None,
            )
        )
    return plans
