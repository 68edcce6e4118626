"""Weights are read beside the event loop, once for all who wait, with an engine that reads as a test says."""

import asyncio
import threading
from collections import Counter

import pytest

from nst_engine import StylizeOptions, WeightsError
from nst_server.model_server.networks import Networks

CAFFE, OTHER = StylizeOptions(), StylizeOptions(model="vgg19-torchvision")
SECONDS = 30.0


class Engine:
    """Reads the weights of a model as long as its gate is closed."""

    def __init__(self) -> None:
        self.gates = {options.model: threading.Event() for options in (CAFFE, OTHER)}
        self.reads: Counter[str] = Counter()
        self.error: Exception | None = None

    def prepare(self, options: StylizeOptions) -> None:
        self.reads[options.model] += 1
        assert self.gates[options.model].wait(SECONDS)
        if self.error is not None:
            raise self.error


@pytest.fixture
def engine():
    engine = Engine()
    yield engine
    for gate in engine.gates.values():
        gate.set()


def networks(engine: Engine, seconds: float = SECONDS) -> Networks:
    return Networks(engine, seconds)


async def test_a_network_is_read_once_and_holds_no_other_up(engine):
    one = networks(engine)
    waiting = [asyncio.create_task(one.ready(CAFFE)) for _ in range(3)]
    engine.gates[OTHER.model].set()
    await one.ready(OTHER)
    assert not any(task.done() for task in waiting)
    engine.gates[CAFFE.model].set()
    await asyncio.gather(*waiting)
    assert engine.reads == {CAFFE.model: 1, OTHER.model: 1}


async def test_who_waits_in_vain_is_told_why_and_the_next_one_tries_again(engine):
    one = networks(engine)
    engine.error = WeightsError("there are none")
    waiting = [asyncio.create_task(one.ready(CAFFE)) for _ in range(2)]
    await asyncio.sleep(0)
    engine.gates[CAFFE.model].set()
    for task in waiting:
        with pytest.raises(WeightsError, match="there are none"):
            await task
    engine.error = None
    await one.ready(CAFFE)
    assert engine.reads[CAFFE.model] == 2


async def test_a_job_waits_for_a_limited_time(engine):
    one = networks(engine, 0.05)
    with pytest.raises(WeightsError, match=r"weights_seconds = 0\.05"):
        await one.ready(CAFFE)
    engine.gates[CAFFE.model].set()


async def test_nobody_has_to_wait_to_the_end(engine):
    one = networks(engine)
    waiting = asyncio.create_task(one.ready(CAFFE))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    engine.gates[CAFFE.model].set()
    await one.ready(CAFFE)
