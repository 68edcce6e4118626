"""Hundreds of watchers on jobs that write events: how late events come, and what the gateway takes for it.

The jobs are not computed: a process writes their events at the pace of a real job, so that the
processors are left to the gateway, NATS and the watchers. Run by `make load`.
"""

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager

import machine
from event_writer import PREVIEW_BYTES, PROGRESS_PER_PREVIEW, PROGRESS_SECONDS, write_events
from load_server import MIB, LoadServer, load_server, percentile
from table import Table
from watch_clients import Seen, never_read, watch

JOBS = 20
CLIENTS = 2
SETTLE_SECONDS = 5.0
MOST_LAG = 250.0  # ms
MOST_MIB = 256.0
LATER = 1.25  # times what one that never reads has cost soon
SPAWN = multiprocessing.get_context("spawn")


@contextmanager
def running_jobs(nats_url: str, jobs: int) -> Iterator[list[str]]:
    """The ids of jobs that run for as long as the block does."""
    ours, theirs = SPAWN.Pipe()
    writer = SPAWN.Process(target=write_events, args=(nats_url, jobs, theirs))
    writer.start()
    try:
        yield ours.recv()
        ours.send(None)
        writer.join(60)
    finally:
        writer.kill()
        writer.join()


class Measurement:
    """One server and its jobs, measured in several ways."""

    def __init__(self, table: Table, server: LoadServer, job_ids: list[str], pool: ProcessPoolExecutor) -> None:
        self._table = table
        self._server = server
        self._job_ids = job_ids
        self._pool = pool

    def memory(self, when: str) -> None:
        """The gateway's resident memory now."""
        self._table.add(f"gateway's memory {when} (MiB)", self._server.resident_mib())

    def lags(self, way: str, watchers: int, seconds: float, *, omit_pictures: bool, silent: int = 0) -> None:
        """How late events come to this many watchers, while others never read."""
        whole = SETTLE_SECONDS + seconds
        if silent:
            self._pool.submit(never_read, self._server.address, self._job_ids, silent, whole + SETTLE_SECONDS)
        share = [len(range(client, watchers, CLIENTS)) for client in range(CLIENTS)]
        arguments = (omit_pictures, SETTLE_SECONDS, seconds)
        clients = [self._pool.submit(watch, self._server.address, self._job_ids, count, *arguments) for count in share]
        with machine.OtherLoad() as others:
            resident, used = self._while_running(clients)
        seen = Seen()
        for client in clients:
            seen += client.result()
        self._add_lags(way, seen, seconds)
        most = max(resident)
        self._table.add(f"{way}: gateway's memory (MiB)", most, f"under {MOST_MIB:g}", most < MOST_MIB)
        for name, processors in used.items():
            self._table.add(f"{way}: processors, {name}", processors)
        self._table.add(f"{way}: processors busy for others", others.processors)

    def _while_running(self, clients: list[Future[Seen]]) -> tuple[list[float], dict[str, float]]:
        time.sleep(SETTLE_SECONDS)
        resident, start, before = [], time.perf_counter(), self._server.cpu_seconds()
        while not any(client.done() for client in clients):
            after, elapsed = self._server.cpu_seconds(), time.perf_counter() - start
            resident.append(self._server.resident_mib())
            time.sleep(0.5)
        return resident, {name: (after[name] - before[name]) / elapsed for name in before}

    def _add_lags(self, way: str, seen: Seen, seconds: float) -> None:
        milliseconds = [lag * 1000 for lag in seen.lags]
        p99 = percentile(milliseconds, 0.99)
        self._table.add(f"{way}: age of an event on receipt, p99 (ms)", p99, f"under {MOST_LAG:g}", p99 < MOST_LAG)
        for name, share in (("p50", 0.5), ("p95", 0.95), ("largest", 1.0)):
            self._table.add(f"{way}: {name}", percentile(milliseconds, share))
        self._table.add(f"{way}: events a second, all watchers", len(seen.lags) / seconds)
        if seen.pictures:
            self._table.add(f"{way}: previews that came with their picture (%)", 100 * seen.pictures / seen.previews)

    def silent(self, watchers: int, seconds: float) -> None:
        """What watchers cost that never read, soon and later."""
        before = self._server.resident_mib()
        holding = self._pool.submit(never_read, self._server.address, self._job_ids, watchers, 2 * seconds)
        each = []
        for _ in range(2):
            time.sleep(0.9 * seconds)
            each.append((self._server.resident_mib() - before) * MIB / watchers / 1024)
        found = f"{each[0]:.0f}, {each[1]:.0f}"
        kept = each[1] <= LATER * each[0]
        self._table.add(f"memory for each of {watchers} that never read, soon and later (KiB)", found, "fixed", kept)
        holding.result()


def measure(seconds: float, watchers: int) -> Table:
    """Every way in turn."""
    title = (
        f"{watchers} watchers on {JOBS} jobs, {1 / PROGRESS_SECONDS:.0f} progress events a second each and a preview "
        f"of {PREVIEW_BYTES // 1000} kB after {PROGRESS_PER_PREVIEW} of them"
    )
    table = Table("load-watchers", title, details={"machine": machine.facts()})
    with (
        load_server() as server,
        running_jobs(server.nats_url, JOBS) as job_ids,
        ProcessPoolExecutor(CLIENTS + 1, mp_context=SPAWN) as pool,
    ):
        measurement = Measurement(table, server, job_ids, pool)
        measurement.memory("before anybody watches")
        measurement.silent(200, seconds)
        measurement.lags("pictures", watchers, seconds, omit_pictures=False)
        measurement.lags("no pictures", watchers, seconds, omit_pictures=True)
        for silent in (1, 20):
            measurement.lags(f"and {silent} silent", watchers, seconds, omit_pictures=False, silent=silent)
        measurement.memory("when they have left")
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="How long each way is measured.")
    parser.add_argument("--watchers", type=int, default=500)
    arguments = parser.parse_args()
    return measure(arguments.seconds, arguments.watchers).told()


if __name__ == "__main__":
    sys.exit(main())
