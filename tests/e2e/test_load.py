"""Short runs of tests/load: they measure what they say, on a server that they start."""

from concurrent.futures import ProcessPoolExecutor

import full_queue
import watchers
from load_server import load_server
from table import Table


async def test_a_small_queue_fills_and_refuses():
    table = await full_queue.measure(8)
    assert sum(row.name.startswith("refusal past the limit") for row in table.rows) == len(full_queue.CALLERS)


def test_a_few_watchers_hear_of_every_job(monkeypatch):
    monkeypatch.setattr(watchers, "SETTLE_SECONDS", 1.0)
    with (
        load_server() as server,
        watchers.running_jobs(server.nats_url, 2) as job_ids,
        ProcessPoolExecutor(watchers.CLIENTS, mp_context=watchers.SPAWN) as pool,
    ):
        table = Table("a few", "A few")
        watchers.Measurement(table, server, job_ids, pool).lags("pictures", 8, 2.0, omit_pictures=False)
    found = {row.name: row.value for row in table.rows}
    assert found["pictures: events a second, all watchers"] > 0
    assert found["pictures: previews that came with their picture (%)"] == 100
