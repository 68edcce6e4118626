"""What the machine can do: the device to compute on, and whether it has bfloat16 arithmetic."""

import torch


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
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16"))
    return False


def trunk_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The arithmetic of the feature network for `StylizeOptions.precision`."""
    if precision == "auto":
        precision = "bfloat16" if has_native_bfloat16(device) else "float32"
    return torch.bfloat16 if precision == "bfloat16" else torch.float32
