"""Children of `nst-server serve` run for as long as it does."""

import asyncio
import os
from pathlib import Path

from nst_server.supervisor import Child


async def started(child: Child, running: asyncio.Task[None]) -> int:
    """Waits until the child has a process; which."""
    async with asyncio.timeout(10):
        while child.pid is None:
            assert not running.done()
            await asyncio.sleep(0.02)
    return child.pid


async def test_a_child_that_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    program = tmp_path / "program"
    child = Child("child", [str(program)], {})
    running = asyncio.create_task(child.run())
    await asyncio.sleep(0.05)
    assert child.pid is None
    program.symlink_to("/bin/true")
    await started(child, running)
    await child.stop()
    await running


async def test_ctrl_c_in_a_terminal_does_not_reach_a_child() -> None:
    child = Child("child", ["sleep", "60"], {})
    running = asyncio.create_task(child.run())
    pid = await started(child, running)
    assert os.getpgid(pid) == pid
    await child.stop()
    await running
