"""Short runs of the engine on small pictures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from nst_engine import Engine, Session, StepReport, Style, StylizeOptions
from nst_engine.balance import PLAIN
from nst_engine.networks import NETWORKS
from nst_engine.pictures import MID_GREY
from nst_engine.threads import has_gnu_threads
from nst_engine.tiling import map_bytes_per_pixel

Pixels = NDArray[np.uint8]

MODEL = "vgg16-caffe"
needs_gnu_threads = pytest.mark.skipif(not has_gnu_threads(), reason="compiled loops need GNU's OpenMP")
# Options that compute otherwise than float32 by name.
OTHER_PRECISIONS = [{"precision": "auto"}]
# Shallow taps keep a run to a fraction of a second.
SHALLOW = {"content_layers": {"relu2_1": 1.0}, "style_layers": {"relu1_1": 1.0, "relu1_2": 1.0, "relu2_1": 1.0}}
# For runs of which it counts what they look like; they take twice as long.
DEEPER = {"content_layers": {"relu2_2": 1.0}, "style_layers": {"relu1_1": 1.0, "relu2_1": 1.0, "relu3_1": 1.0}}


def quick(**changes: Any) -> StylizeOptions:
    """Options for a short run at 64 px in float32."""
    return StylizeOptions(
        **{"size": 64, "scales": 1, "iterations": 6, "precision": "float32", **SHALLOW, **changes},
    )


def stepped(engine: Engine, sessions: Sequence[Session]) -> list[StepReport]:
    """One iteration of all; raises what the first of them ended in."""
    reports = []
    for outcome in engine.step(sessions):
        if isinstance(outcome, Exception):
            raise outcome
        reports.append(outcome)
    return reports


def step(engine: Engine, session: Session) -> StepReport:
    """One iteration; raises what it ended in."""
    (report,) = stepped(engine, [session])
    return report


def finish(engine: Engine, session: Session) -> list[StepReport]:
    """Steps a session to its end."""
    reports = []
    while not session.finished:
        reports.append(step(engine, session))
    return reports


def run(engine: Engine, content: Pixels, style: Pixels, options: StylizeOptions) -> tuple[list[StepReport], Session]:
    """A whole run with one style."""
    session = engine.start(content, [Style(style)], options)
    return finish(engine, session), session


def steps(engine: Engine, session: Session, count: int) -> list[StepReport]:
    return [step(engine, session) for _ in range(count)]


def as_image(picture: Pixels) -> Tensor:
    """(H, W, 3) as (1, 3, H, W) float32 in 0-255."""
    return torch.tensor(picture, dtype=torch.float32).permute(2, 0, 1)[None]


def noisy(picture: Pixels, deviation: float = 12.0, seed: int = 5) -> Tensor:
    """The picture as an image with seeded noise on it, some of it outside 0-255."""
    image = as_image(picture)
    return image + deviation * torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))


def at_balance(picture: Pixels) -> Tensor:
    """An image of the picture's shape like the one where a strength is balanced, under other noise."""
    return noisy(np.full_like(picture, int(MID_GREY)), PLAIN.noise)


def shares_of(styles: Sequence[Pixels], shares: Sequence[float]) -> list[Style]:
    return [Style(picture, share) for picture, share in zip(styles, shares, strict=True)]


def bytes_for(options: StylizeOptions, pixels: int, itemsize: int = 4) -> int:
    """The memory budget with which a tile may have that many pixels."""
    taps = [*options.content_layers, *options.style_layers]
    network = NETWORKS[options.model]
    late = network.late_relus(taps, options.pooling)
    return int(pixels * map_bytes_per_pixel(network, taps, options.pooling, itemsize, late)) + 1
