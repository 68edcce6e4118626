"""What a job's session is made from, and how one that ran out of memory is tried again."""

from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from nst.internal.v1.job_record_pb2 import JobRecord
from nst.v1 import options_pb2
from nst_engine import Engine, OptionError, Session
from nst_engine.tiled import TiledObjective
from nst_server.model_server.sessions import RETRY_BUDGET_SHARE, SessionSource

SIDE = 128
CONTENT = "c" * 64
WHOLE = 16 * 2**20  # for the maps of the whole picture, for which a quarter is not enough
SORTED = 2 * WHOLE  # likewise, and for what it takes to sort them


def png(pixels: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class Stored:
    """The tenant's pictures."""

    files: dict[str, bytes] = field(
        default_factory=lambda: {
            CONTENT: png(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)),
        }
    )

    async def get(self, digest: str) -> bytes:
        return self.files[digest]


@dataclass
class Lease:
    """A lease of this record."""

    record: JobRecord


async def retried(*, sliced: bool, alone: bool = True, budget: int = WHOLE) -> Session:
    """The session of a job that has run out of memory before, if it is `alone`."""
    record = JobRecord()
    record.lease.alone = alone
    record.spec.content.reference.sha256 = CONTENT
    record.spec.styles.add(weight=1.0).image.reference.sha256 = CONTENT
    options = record.spec.options
    options.precision = options_pb2.PRECISION_FLOAT32
    if sliced:
        options.style_statistic = options_pb2.STYLE_STATISTIC_SLICED
    options.size, options.scales, options.iterations = SIDE, 1, 2
    options.style_layers.weights["relu2_1"] = options.content_layers.weights["relu2_1"] = 1.0
    make, nbytes = await SessionSource(Lease(record), Stored()).maker()
    assert nbytes == 2 * 3 * SIDE * SIDE
    return make(Engine("cpu", threads=1, memory_budget=budget))


def in_tiles(session: Session) -> bool:
    return isinstance(session._stage.objective, TiledObjective)


async def test_a_job_that_ran_out_of_memory_is_worked_on_in_smaller_tiles():
    assert not in_tiles(await retried(sliced=False, alone=False))
    assert in_tiles(await retried(sliced=False))


async def test_one_that_cannot_be_is_tried_again_whole():
    with pytest.raises(OptionError):
        await retried(sliced=True, alone=False, budget=SORTED // RETRY_BUDGET_SHARE)
    session = await retried(sliced=True, budget=SORTED)
    assert not in_tiles(session)
    session.advance()


async def test_one_that_fits_nowhere_is_refused():
    with pytest.raises(OptionError, match="memory budget"):
        await retried(sliced=True, budget=2**20)
