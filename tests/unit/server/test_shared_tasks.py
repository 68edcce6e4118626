"""Work is done once for all who want it at the same time."""

import asyncio
import gc

import pytest
from work_in_hand import Work

from nst_server.shared_tasks import SharedTasks


async def test_it_goes_on_for_those_who_stay():
    tasks, work = SharedTasks[object](), Work(value=object())
    leaving, staying = (asyncio.create_task(tasks.run("key", work)) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    work.let.set()
    assert await staying is work.value
    assert (leaving.cancelled(), work.begun) == (True, 1)


async def test_a_failure_is_that_of_all_who_wait_and_of_nobody_else():
    tasks, work, other = SharedTasks[object](), Work(), Work()
    waiting = [asyncio.create_task(tasks.run("key", work)) for _ in range(3)]
    apart = asyncio.create_task(tasks.run("another key", other))
    await asyncio.sleep(0)
    work.let.set()
    assert [type(one) for one in await asyncio.gather(*waiting, return_exceptions=True)] == [KeyError] * 3
    assert (work.begun, other.begun, apart.done()) == (1, 1, False)
    with pytest.raises(KeyError):
        await tasks.run("key", work)
    assert work.begun == 2, "what has failed is begun again"
    other.let.set()
    await asyncio.wait([apart])
    assert isinstance(apart.exception(), KeyError)


async def test_a_failure_for_which_nobody_waits_is_nobodys():
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    tasks, work = SharedTasks[object](), Work()
    waiting = asyncio.create_task(tasks.run("key", work))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    work.let.set()
    for _ in range(5):
        await asyncio.sleep(0)
    del tasks
    gc.collect()
    assert (work.begun, complaints) == (1, [])
