"""Short runs of tests/load: they measure what they say, on a server that they start."""

from concurrent.futures import ProcessPoolExecutor

import full_queue
import watchers
from load_server import load_server


async def test_a_small_queue_fills_and_refuses():
    report = await full_queue.measure(8)
    assert sum("refusal past the limit" in figure.name for figure in report.figures) == len(full_queue.CALLERS)


def test_a_few_watchers_hear_of_every_job(monkeypatch):
    monkeypatch.setattr(watchers, "SETTLE_SECONDS", 1.0)
    with (
        load_server() as server,
        watchers.running_jobs(server.nats_url, 2) as job_ids,
        ProcessPoolExecutor(watchers.CLIENTS, mp_context=watchers.SPAWN) as pool,
    ):
        measurement = watchers.Measurement(server, job_ids, pool)
        measurement.lags("pictures", 8, 2.0, omit_pictures=False)
    figures = {name: ways["pictures"] for (name, _, _), ways in measurement.figures.items()}
    assert figures["events a second, all watchers"][0] > 0
    assert figures["previews that came with their picture"] == [100]
