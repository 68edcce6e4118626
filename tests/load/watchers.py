"""Hundreds of watchers on jobs that write events: how late events come, and what the gateway takes for it.

The jobs are not computed: a process writes their events at the pace of a real job, so that the
processors are left to the gateway, NATS and the watchers. Run by `make load`.
"""

import argparse
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager

import machine
from event_writer import PREVIEW_BYTES, PROGRESS_PER_PREVIEW, PROGRESS_SECONDS, write_events
from load_server import MIB, LoadServer, load_server, percentile
from processes import RESULTS
from report import Report
from watch_clients import Seen, never_read, watch

JOBS = 20
CLIENTS = 2
SETTLE_SECONDS = 5.0
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

    def __init__(self, server: LoadServer, job_ids: list[str], pool: ProcessPoolExecutor) -> None:
        self.figures: dict[tuple[str, str, str], dict[str, list[float]]] = {}
        self._server = server
        self._job_ids = job_ids
        self._pool = pool

    def _add(self, name: str, unit: str, target: str, ways: dict[str, list[float]]) -> None:
        self.figures.setdefault((name, unit, target), {}).update(ways)

    def memory(self, when: str) -> None:
        """The gateway's resident memory now."""
        self._add(f"gateway's memory {when}", "MiB", "", {"pictures": [self._server.resident_mib()]})

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
        self._add("gateway's memory while they watch", "MiB", "bounded", {way: resident})
        for name, processors in used.items():
            self._add(f"processors: {name}", "", "", {way: [processors]})
        self._add("processors busy for others", "", "0", {way: [others.processors]})

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
        for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("largest", 1.0)):
            target = "under 250" if name == "p99" else ""
            self._add(f"age of an event on receipt, {name}", "ms", target, {way: [percentile(milliseconds, share)]})
        self._add("events a second, all watchers", "", "", {way: [len(seen.lags) / seconds]})
        if seen.pictures:
            share = 100 * seen.pictures / seen.previews
            self._add("previews that came with their picture", "%", "", {way: [share]})

    def silent(self, watchers: int, seconds: float) -> None:
        """What watchers cost that never read, soon and later."""
        before = self._server.resident_mib()
        holding = self._pool.submit(never_read, self._server.address, self._job_ids, watchers, 2 * seconds)
        for when in (0.9 * seconds, 1.8 * seconds):
            time.sleep(0.9 * seconds)
            each = (self._server.resident_mib() - before) * MIB / watchers / 1024
            name = f"memory for each of {watchers} that never read, after {when:.0f} s"
            self._add(name, "KiB", "fixed", {"pictures": [each]})
        holding.result()


def measure(seconds: float, watchers: int) -> Report:
    """Every way in turn."""
    title = (
        f"{watchers} watchers on {JOBS} jobs, {1 / PROGRESS_SECONDS:.0f} progress events a second each and a preview "
        f"of {PREVIEW_BYTES // 1000} kB after {PROGRESS_PER_PREVIEW} of them"
    )
    report = Report("load-watchers", title, machine.facts())
    with (
        load_server() as server,
        running_jobs(server.nats_url, JOBS) as job_ids,
        ProcessPoolExecutor(CLIENTS + 1, mp_context=SPAWN) as pool,
    ):
        measurement = Measurement(server, job_ids, pool)
        measurement.memory("before anybody watches")
        measurement.silent(200, seconds)
        measurement.lags("pictures", watchers, seconds, omit_pictures=False)
        measurement.lags("no pictures", watchers, seconds, omit_pictures=True)
        for silent in (1, 20):
            measurement.lags(f"and {silent} silent", watchers, seconds, omit_pictures=False, silent=silent)
        measurement.memory("when they have left")
    for (name, unit, target), ways in measurement.figures.items():
        report.add(name, unit, target, ways)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="How long each way is measured.")
    parser.add_argument("--watchers", type=int, default=500)
    arguments = parser.parse_args()
    report = measure(arguments.seconds, arguments.watchers)
    report.show()
    report.write(RESULTS)


if __name__ == "__main__":
    main()
