"""Children of `nst-server serve` run for as long as it does."""

import asyncio
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from nst_server.supervisor import Child, find_nats_server, write_nats_config


async def wait_until(done: Callable[[], bool], running: asyncio.Task[None]) -> None:
    """Waits for something of a child that is kept running."""
    async with asyncio.timeout(10):
        while not done():
            assert not running.done()
            await asyncio.sleep(0.02)


async def test_a_child_that_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    program = tmp_path / "program"
    child = Child("child", [str(program)], {})
    running = asyncio.create_task(child.run())
    await asyncio.sleep(0.05)
    assert child.pid is None
    program.symlink_to("/bin/true")
    await wait_until(lambda: child.pid is not None, running)
    await child.stop()
    await running


async def test_ctrl_c_in_a_terminal_does_not_reach_a_child() -> None:
    child = Child("child", ["sleep", "60"], {})
    running = asyncio.create_task(child.run())
    await wait_until(lambda: child.pid is not None, running)
    assert os.getpgid(child.pid) == child.pid
    await child.stop()
    await running


async def test_a_child_that_took_its_settings_is_tried_again_whatever_it_says(tmp_path: Path) -> None:
    """What it refuses then has gone since, such as a device, and may come back."""
    runs = tmp_path / "runs"
    script = f"echo >> {runs}; case $(wc -l < {runs}) in 1) exit 1;; 2) exit 2;; *) sleep 60;; esac"
    child = Child("child", ["sh", "-c", script], {}, refusal=2)
    running = asyncio.create_task(child.run())
    await wait_until(lambda: runs.exists() and len(runs.read_text()) == 3, running)
    await child.stop()
    await running


@pytest.mark.parametrize("name", ["plain", "two words", "dätä", 'a "quoted" \\ name', os.fsdecode(b"no \xff text")])
def test_the_data_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    config = write_nats_config(folder, "127.0.0.1:0")
    checked = subprocess.run([find_nats_server(), "-t", "-c", str(config)], capture_output=True)
    assert checked.returncode == 0, checked.stderr
