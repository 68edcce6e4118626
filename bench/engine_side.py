"""The bare engine: the same work with no service around it. These functions run in a process of their own.

`nst_engine` loads torch when a name of it is first used, so only that process does.
"""

import functools
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from multiprocessing import get_context

import numpy as np
from jobs import CONTENT, STYLE, Job, Timing
from machine import OtherLoad, cpu_seconds
from numpy.typing import NDArray
from PIL import Image

import nst_engine
from nst_engine.options import StylizeOptions


@contextmanager
def engine_process() -> Iterator[ProcessPoolExecutor]:
    """A process that runs the functions below, for as long as the block runs."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        pool.submit(facts).result()
        yield pool


@functools.cache
def _engine() -> nst_engine.Engine:
    engine = nst_engine.Engine()
    engine.warm_up(StylizeOptions().model)
    return engine


def facts() -> dict[str, str | int]:
    """What torch makes of the machine; warms the engine up."""
    import torch

    device = _engine().device_name
    return {"torch": torch.__version__, "device": device, "threads": torch.get_num_threads()}


def _start(content: bytes, style: bytes, options: StylizeOptions) -> nst_engine.Session:
    pictures = [np.asarray(Image.open(BytesIO(data)).convert("RGB")) for data in (content, style)]
    return _engine().start(pictures[0], [nst_engine.Style(pictures[1])], options)


def run(job: Job) -> Timing:
    """Runs the job to its end."""
    cpu = cpu_seconds(os.getpid())
    ends: list[float] = []
    computing = 0.0
    with OtherLoad() as others:
        start = time.perf_counter()
        options = StylizeOptions(size=job.size, iterations=job.iterations)
        session = _start(CONTENT.read_bytes(), STYLE.read_bytes(), options)
        while not session.finished:
            before = time.perf_counter()
            session.advance()
            ends.append(time.perf_counter())
            computing += ends[-1] - before
        session.image()
        call = time.perf_counter() - start
    cpu = cpu_seconds(os.getpid()) - cpu
    return Timing(ends[-1] - ends[0], call, computing, {"engine": cpu}, others.processors)


def first_picture_seconds(content: bytes, style: bytes, size: int) -> float:
    """Seconds from two picture files to the picture after the first iteration."""
    start = time.perf_counter()
    session = _start(content, style, StylizeOptions(size=size))
    session.advance()
    session.image()
    return time.perf_counter() - start


def stylized(content: NDArray[np.uint8], styles: list[nst_engine.Style], options: StylizeOptions) -> NDArray[np.uint8]:
    """What the engine makes of these pictures."""
    return last_picture(_engine().start(content, styles, options))


def last_picture(session: nst_engine.Session) -> NDArray[np.uint8]:
    """What a session has made when it has done all its iterations, which it does."""
    while not session.finished:
        session.advance()
    return session.image()


@dataclass(frozen=True)
class CheckpointCost:
    """A checkpoint's size in bytes, and the seconds of copying the state and of packing it."""

    size: int
    copying: float
    packing: float


def checkpoint_cost(job: Job) -> CheckpointCost:
    """Measures the checkpoint of the job when it has done all its iterations but one."""
    from nst_engine import checkpoint

    options = StylizeOptions(size=job.size, iterations=job.iterations)
    session = _start(CONTENT.read_bytes(), STYLE.read_bytes(), options)
    for _ in range(job.iterations - 1):
        session.advance()
    start = time.perf_counter()
    state = session.state_dict()
    copied = time.perf_counter()
    size = len(checkpoint.dumps(state))
    return CheckpointCost(size, copied - start, time.perf_counter() - copied)
