"""What suits a device: how much memory jobs may take, how many go well together, and how much work may be lost."""

import psutil
import torch

from nst_engine import Engine, hardware
from nst_engine.memory import EVALUATION

FREE_SHARE = 0.7
JOBS_ON_CPU = 2
JOBS_ON_GPU = 16
BATCH_ON_CPU = 1
BATCH_ON_GPU = 16
CHECKPOINT_SECONDS_ON_CPU = 4.0
CHECKPOINT_SECONDS_ON_GPU = 0.5


def in_use(device: torch.device) -> int:
    """Bytes in use on the device; on a CPU, by this process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


def default_limit(device: torch.device) -> int:
    """Bytes that jobs may take, of those that are free now."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else hardware.free_memory()
    return int(FREE_SHARE * free)


def most_evaluating(engine: Engine) -> int:
    """Bytes that no evaluation exceeds: larger ones go in tiles."""
    return int(EVALUATION * engine.memory_budget)


def default_jobs(device: torch.device) -> int:
    """Jobs of one flow worked on side by side."""
    return JOBS_ON_CPU if device.type == "cpu" else JOBS_ON_GPU


def default_batch(device: torch.device) -> int:
    """Jobs that are turned together: a CPU is as fast with one at a time."""
    return BATCH_ON_CPU if device.type == "cpu" else BATCH_ON_GPU


def default_checkpoint_seconds(device: torch.device) -> float:
    """Time on the device between checkpoints of a job: about what a crash costs it."""
    return CHECKPOINT_SECONDS_ON_CPU if device.type == "cpu" else CHECKPOINT_SECONDS_ON_GPU


class Meter:
    """Measures the bytes that an engine has taken since this was made."""

    def __init__(self, engine: Engine, limit: int) -> None:
        """`limit` is how many it may take."""
        self._device = engine.device
        self._limit = limit
        self._before = in_use(engine.device)

    @property
    def is_short(self) -> bool:
        """Whether the limit is reached."""
        return self() >= self._limit

    def __call__(self) -> int:
        """Bytes."""
        return in_use(self._device) - self._before
