"""The README's example does what it says."""

import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

from nst_processes import Server

README = Path(__file__).parents[2] / "README.md"
DEFAULT_ADDRESS = "127.0.0.1:50051"


def read_example() -> str:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    return example


def test_the_example_runs_as_printed(server: Server, content_path: Path, style_path: Path, tmp_path: Path):
    """But for the address, and in a smaller size."""
    script = read_example()
    for printed, here in ((DEFAULT_ADDRESS, server.address), ("size=256", "size=64")):
        assert script.count(printed) == 1
        script = script.replace(printed, here)
    (tmp_path / "photo.jpg").write_bytes(content_path.read_bytes())
    Image.open(style_path).save(tmp_path / "painting.jpg")
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr

    iterations = [int(iteration) for iteration in re.findall(r"^(\d+) of 30: loss \d+$", run.stdout, re.MULTILINE)]
    assert iterations == sorted(set(iterations))
    assert iterations[-1] == 30
    assert Image.open(tmp_path / "stylised.png").size == (64, 43)
    assert Image.open(tmp_path / "preview.png").size == (64, 43)


def test_the_example_passes_a_type_checker(mypy_cache: Path, tmp_path: Path):
    (tmp_path / "example.py").write_text(read_example())
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(mypy_cache), str(tmp_path / "example.py")]
    run = subprocess.run(command, cwd=README.parent, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)\)", README.read_text())
    local = [target for target in targets if "://" not in target]
    assert local
    assert [target for target in local if not (README.parent / target).exists()] == []


def test_every_make_target_exists():
    rules = re.findall(r"^([a-z]+):", (README.parent / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"make ([a-z]+)", README.read_text())) <= set(rules)
