"""What went wrong with a job, and what its client is told: a google.rpc code, a constant, a sentence."""

from dataclasses import dataclass

import torch
from google.rpc import code_pb2

from nst_engine.options import OptionError
from nst_engine.weights import WeightsError
from nst_server.jobs.backbone import StoreFull
from nst_server.jobs.blobs import BlobNotFound
from nst_server.pictures import PictureError

# In RuntimeErrors: of torch's allocator on a CPU; of CUDA itself, where it loads a kernel or makes a graph; of its
# libraries.
OUT_OF_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "_ALLOC_FAILED", "_ALLOCATION_FAILED")
CUDA_ERROR = "CUDA error"


class DeviceLost(Exception):
    """Another job's failure has left the device unusable for this process."""


@dataclass(frozen=True)
class FailureText:
    """The fields of `nst.v1.JobError`."""

    code: int
    reason: str
    message: str


def is_out_of_memory(error: Exception) -> bool:
    """Whether the device or the machine had no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)
    )


def is_device_failure(error: Exception) -> bool:
    """Whether the error stays with the process: whatever it asks of the device next fails too."""
    if is_out_of_memory(error):
        return False
    return isinstance(error, torch.AcceleratorError) or (isinstance(error, RuntimeError) and CUDA_ERROR in str(error))


def describe_failure(error: Exception) -> FailureText:
    """The failure as its client should read it; only what is nobody's fault but ours is INTERNAL."""
    if isinstance(error, OptionError):
        return FailureText(code_pb2.INVALID_ARGUMENT, "BAD_OPTION", str(error))
    if isinstance(error, PictureError):
        return FailureText(code_pb2.INVALID_ARGUMENT, error.reason, str(error))
    if isinstance(error, WeightsError):
        return FailureText(code_pb2.FAILED_PRECONDITION, "NO_WEIGHTS", str(error))
    if isinstance(error, BlobNotFound):
        return FailureText(
            code_pb2.FAILED_PRECONDITION,
            "PICTURE_REMOVED",
            f"the picture {error} is no longer stored: upload it again and make a new job",
        )
    if isinstance(error, StoreFull):
        return FailureText(code_pb2.RESOURCE_EXHAUSTED, "STORE_FULL", f"the job store is full: {error}")
    if is_out_of_memory(error):
        return FailureText(
            code_pb2.RESOURCE_EXHAUSTED,
            "OUT_OF_MEMORY",
            "the device has too little memory, even for this job alone and in smaller tiles: ask for a smaller size",
        )
    return FailureText(code_pb2.INTERNAL, "ENGINE_FAILED", f"the engine failed: {type(error).__name__}: {error}")
