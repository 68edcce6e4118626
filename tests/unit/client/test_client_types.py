"""What the client returns has the types that it takes."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """\
from typing import assert_type

import PIL.Image

from nst_client import Client, Job


def make_again(client: Client, job_id: str) -> Job:
    status = client.job(job_id).status()
    return client.stylize(status.content, status.styles, **status.options, priority=status.priority)


def fetch(job: Job) -> None:
    assert_type(job.result("png", timeout=60), PIL.Image.Image)
"""


def test_a_type_checker_passes_them(mypy_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(mypy_cache), str(tmp_path / "program.py")]
    run = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
