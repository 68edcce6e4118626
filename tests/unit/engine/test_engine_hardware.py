"""What the engine takes a machine's memory to be."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from nst_engine import Engine, hardware

GIB = 2**30
CPU = torch.device("cpu")


def cgroup(folder: Path, limit: str, used: int, cached: int = 0) -> Path:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\nfile 9\ninactive_file {cached}\nactive_file 0\n")
    return folder


def test_a_container_has_what_its_limit_leaves(tmp_path: Path):
    available = psutil.virtual_memory().available
    assert hardware.free_memory(cgroup(tmp_path, str(1000), 300)) == 700
    assert hardware.free_memory(cgroup(tmp_path, str(1000), 1001)) == 0
    assert hardware.free_memory(cgroup(tmp_path, str(1000), 990, cached=600)) == 610, "files give way"
    for folder in (cgroup(tmp_path, "max", 300), tmp_path / "nowhere"):
        assert hardware.free_memory(folder) == pytest.approx(available, rel=0.5)
    assert hardware.free_memory(cgroup(tmp_path, str(2**60), 0)) == pytest.approx(available, rel=0.5)


@pytest.mark.parametrize(("capability", "dtype"), [(7, torch.float32), (8, torch.bfloat16), (9, torch.bfloat16)])
def test_bfloat16_is_of_the_gpu_that_is_meant(monkeypatch: pytest.MonkeyPatch, capability: int, dtype: torch.dtype):
    """Beside another, of the other kind, that is the current one."""
    majors = {torch.device("cuda:0"): 16 - capability, torch.device("cuda:1"): capability}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=majors[device]))
    for precision in ("auto", "bfloat16"):
        assert hardware.arithmetic(precision, torch.device("cuda:1")) == (dtype, False)
    assert hardware.arithmetic("float32", torch.device("cuda:1")) == (torch.float32, False)


@pytest.mark.parametrize(
    ("capabilities", "fastest"),
    [
        ({}, (torch.float32, True)),
        ({"avx512_bf16": True}, (torch.bfloat16, True)),
        ({"avx512_bf16": True, "amx_bf16": True}, (torch.bfloat16, False)),
    ],
)
def test_a_cpu_spares_multiplications_where_they_are_dear(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], fastest: tuple[torch.dtype, bool]
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert {hardware.arithmetic(precision, CPU) for precision in ("auto", "bfloat16")} == {fastest}
    assert hardware.arithmetic("float32", CPU) == (torch.float32, False), "what is asked for by name is exact"


@pytest.mark.parametrize(
    ("free", "budget"),
    [(16 * GIB, 4 * GIB), (16 * GIB - 1, 2 * GIB), (23 * GIB, 4 * GIB), (0, GIB // 4), (GIB, GIB // 4)],
)
def test_the_default_budget_is_a_round_quarter_of_what_is_free(monkeypatch, free: int, budget: int):
    monkeypatch.setattr(hardware, "free_memory", lambda: free)
    assert hardware.default_memory_budget(CPU) == budget
    assert Engine("cpu").memory_budget == budget
    assert Engine("cpu", memory_budget=12345).memory_budget == 12345


# Arenas are made once in a process, and this one has its own long since: another process is asked.
FAULTS_OF_A_THREAD = """
import resource, threading
import torch
from nst_engine import hardware

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones({size}, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def work():
    print([faults() for _ in range(20)][-1])

if {keep}:
    hardware.keep_freed_memory()
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.parametrize("keep", [True, False])
def test_a_later_thread_has_the_memory_again_that_it_freed(keep: bool):
    size = 64 * 2**20
    script = FAULTS_OF_A_THREAD.format(keep=keep, size=size)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    pages = size // os.sysconf("SC_PAGE_SIZE")
    assert int(done.stdout) < pages / 100 if keep else int(done.stdout) > pages / 100
