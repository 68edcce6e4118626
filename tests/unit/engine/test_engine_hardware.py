"""What the engine takes a machine's memory to be."""

from pathlib import Path

import psutil
import pytest
import torch

from nst_engine import Engine, hardware

GIB = 2**30
CPU = torch.device("cpu")


def cgroup(folder: Path, limit: str, used: int) -> Path:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    return folder


def test_a_container_has_what_its_limit_leaves(tmp_path: Path):
    available = psutil.virtual_memory().available
    assert hardware.free_memory(cgroup(tmp_path, str(1000), 300)) == 700
    assert hardware.free_memory(cgroup(tmp_path, str(1000), 1001)) == 0
    for folder in (cgroup(tmp_path, "max", 300), tmp_path / "nowhere"):
        assert hardware.free_memory(folder) == pytest.approx(available, rel=0.5)
    assert hardware.free_memory(cgroup(tmp_path, str(2**60), 0)) == pytest.approx(available, rel=0.5)


@pytest.mark.parametrize(
    ("free", "budget"),
    [(16 * GIB, 4 * GIB), (16 * GIB - 1, 2 * GIB), (23 * GIB, 4 * GIB), (0, GIB // 4), (GIB, GIB // 4)],
)
def test_the_default_budget_is_a_round_quarter_of_what_is_free(monkeypatch, free: int, budget: int):
    monkeypatch.setattr(hardware, "free_memory", lambda: free)
    assert hardware.default_memory_budget(CPU) == budget
    assert Engine("cpu").memory_budget == budget
    assert Engine("cpu", memory_budget=12345).memory_budget == 12345
