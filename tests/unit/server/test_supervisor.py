"""Children of `nst-server serve` run for as long as it does."""

import asyncio
from pathlib import Path

from nst_server.supervisor import Child


async def test_a_child_that_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    program = tmp_path / "program"
    child = Child("child", [str(program)], {})
    running = asyncio.create_task(child.run())
    await asyncio.sleep(0.05)
    assert child.pid is None
    program.symlink_to("/bin/true")
    async with asyncio.timeout(10):
        while child.pid is None:
            assert not running.done()
            await asyncio.sleep(0.02)
    await child.stop()
    await running
