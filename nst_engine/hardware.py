"""What the machine can do: the device to compute on, and whether it has bfloat16 arithmetic."""

import ctypes
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from nst_engine.threads import has_gnu_threads

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8

# The default budget is the largest power of two within this share of what is free: so a process that
# is started again, when a little more or less is free, works in the same tiles and to the same bits.
BUDGET_SHARE = 0.25
MINIMUM_BUDGET = 2**28
CGROUP = Path("/sys/fs/cgroup")
AMPERE = 8  # the compute capability from which NVIDIA GPUs have bfloat16


class Arithmetic(NamedTuple):
    """How a feature network computes.

    Attributes:
        dtype: of its maps and weights.
        sparing: whether a VGG multiplies less, for more additions and rounding; see `winograd_rows`, of bfloat16, and
            `winograd_squares`, of float32.
    """

    dtype: torch.dtype
    sparing: bool


def resolve_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the first CUDA device, or else the CPU.

    Raises:
        ValueError: torch knows no such device, or this machine has none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {name!r} cannot be used here ({error}); try auto, cpu or cuda") from error
    return device


def device_name(device: torch.device) -> str:
    """What people call the device, such as "NVIDIA H100" or "AMD EPYC (2 threads)"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        model = torch.cpu.get_capabilities().get("cpu_name", "CPU")
        return f"{model} ({torch.get_num_threads()} threads)"
    return str(device)


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware, rather than by way of float32."""
    if device.type == "cuda":  # torch's own question knows no device but the current one
        return torch.version.hip is not None or torch.cuda.get_device_properties(device).major >= AMPERE
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16"))
    return False


def multiplies_dearly(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether it pays to multiply less for more additions.

    It does on a CPU, in float32, for which loops are compiled that torch's threads have to share, and in bfloat16
    without AMX, which multiplies ten times as fast.
    """
    if device.type != "cpu":
        return False
    return has_gnu_threads() if dtype == torch.float32 else not torch.cpu.get_capabilities().get("amx_bf16")


def arithmetic(precision: str, device: torch.device) -> Arithmetic:
    """That of the feature network for `StylizeOptions.precision`: direct float32, or the fastest that the device has.

    A CPU without bfloat16 would take a hundred times as long as in float32, and be less exact; cuDNN has none on a GPU
    without.
    """
    if precision == "float32":
        return Arithmetic(torch.float32, sparing=False)
    dtype = torch.bfloat16 if has_native_bfloat16(device) else torch.float32
    return Arithmetic(dtype, sparing=multiplies_dearly(device, dtype))


def default_memory_budget(device: torch.device) -> int:
    """Bytes for the maps of one evaluation: a power of two, at most a quarter of what is free, at least 256 MiB."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    return max(MINIMUM_BUDGET, 1 << (max(1, int(free * BUDGET_SHARE)).bit_length() - 1))


def free_memory(cgroup: Path = CGROUP) -> int:
    """Bytes that this process can have without swapping, in its container, if it is in one."""
    available: int = psutil.virtual_memory().available
    try:
        names = ("memory.max", "memory.current", "memory.stat")
        limit, used, stat = ((cgroup / name).read_text().strip() for name in names)
    except OSError:
        return available
    if limit == "max":
        return available
    # Files that are cached count as used, and give way to who needs the memory.
    parts = dict(line.split() for line in stat.splitlines())
    cached = sum(int(parts.get(name, 0)) for name in ("inactive_file", "active_file"))
    return min(available, max(0, int(limit) - int(used) + cached))


def keep_freed_memory() -> None:
    """Has the C allocator keep what is freed, process-wide; where it is not glibc's, does nothing.

    It would give large blocks back to the system at once, and an iteration frees all of its maps: at
    512 px the next one then takes 30,000 page faults to have the same memory again. It works for the
    main thread, and for threads that allocate for the first time after it.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_ARENA_MAX, 1)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def release_freed_memory() -> None:
    """Gives back to the system what `keep_freed_memory` has kept."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
