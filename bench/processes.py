"""A real server, started for a measurement and stopped by its handle."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from machine import cpu_seconds
from prometheus_client.parser import text_string_to_metric_families

RESULTS = Path(__file__).parent / "results"
START_SECONDS = 120
STOP_SECONDS = 90


@dataclass(frozen=True)
class Server:
    """`nst-server serve` on free ports."""

    pid: int
    status_file: Path

    @property
    def status(self) -> dict[str, Any]:
        """Addresses and process ids, as the server tells them."""
        status: dict[str, Any] = json.loads(self.status_file.read_text())
        return status

    @property
    def address(self) -> str:
        """Where the gateway answers."""
        return str(self.status["address"])

    @property
    def pids(self) -> dict[str, int]:
        """Every process of the server by name."""
        return {"supervisor": self.pid, **self.status["pids"]}

    def cpu_seconds(self) -> dict[str, float]:
        """Processor time of each process so far."""
        return {name: cpu_seconds(pid) for name, pid in self.pids.items()}

    def resident_bytes(self) -> dict[str, int]:
        """Resident memory of each process; pages of shared libraries count in each."""
        return {name: psutil.Process(pid).memory_info().rss for name, pid in self.pids.items()}

    def metric(self, name: str) -> float:
        """A sample of the model server's metrics."""
        with urllib.request.urlopen(f"http://{self.status['model_metrics_address']}/metrics", timeout=10) as response:
            text = response.read().decode()
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return next(float(sample.value) for sample in samples if sample.name == name)

    def kill_model_server(self) -> None:
        """SIGKILL, as a crash would be; the supervisor starts another."""
        os.kill(self.pids["model-server"], signal.SIGKILL)


@contextmanager
def running_server(**environment: str) -> Iterator[Server]:
    """A server for as long as the block runs. Its files are beside the results, on a real disk."""
    RESULTS.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=RESULTS, prefix="server-") as folder:
        log = Path(folder) / "server.log"
        anywhere = "127.0.0.1:0"
        command = [sys.executable, "-m", "nst_server", "serve", "--data-dir", folder]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--listen", anywhere, "--metrics-listen", anywhere],
                stdout=output,
                stderr=output,
                env={**os.environ, **environment},
            )
        try:
            yield _ready(process, Path(folder), log)
        finally:
            _stop(process)


def _ready(process: subprocess.Popen[bytes], folder: Path, log: Path) -> Server:
    server = Server(process.pid, folder / "server.json")
    deadline = time.monotonic() + START_SECONDS
    while not server.status_file.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server did not start; the end of its log:\n{log.read_text()[-2000:]}")
        time.sleep(0.05)
    return server


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
