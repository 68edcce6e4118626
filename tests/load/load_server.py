"""A nats-server and a gateway of their own for a measurement, without a model server, and what they use."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from gateway_support import Gateway, running_gateway
from machine import cpu_seconds
from processes import RESULTS

from nst_processes import running_nats

MIB = 2**20
# One tenant makes all the load.
NO_TENANT_LIMITS = {f"NST_MAX_TENANT_{name}": "1000000" for name in ("REQUESTS_PER_SECOND", "JOBS", "CALLS")}


@dataclass(frozen=True)
class LoadServer:
    """What is measured, and where it answers."""

    nats_url: str
    gateway: Gateway

    @property
    def address(self) -> str:
        """Where the gateway answers."""
        return self.gateway.address

    def resident_mib(self) -> float:
        """Resident memory of the gateway."""
        return float(psutil.Process(self.gateway.pid).memory_info().rss / MIB)

    def cpu_seconds(self) -> dict[str, float]:
        """Processor time so far, of each child of this process by its name."""
        used = {"gateway": cpu_seconds(self.gateway.pid)}
        for child in psutil.Process().children():
            if child.pid != self.gateway.pid:
                name = "nats" if child.name() == "nats-server" else "clients and writer"
                used[name] = used.get(name, 0.0) + cpu_seconds(child.pid)
        return used


@contextmanager
def load_server(**environment: str) -> Iterator[LoadServer]:
    """A server for as long as the block runs. Its files are beside the results, on a real disk."""
    RESULTS.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=RESULTS, prefix="load-") as folder, running_nats(Path(folder)) as nats_url:
        with running_gateway(Path(folder) / "gateway", nats_url, **NO_TENANT_LIMITS, **environment) as gateway:
            yield LoadServer(nats_url, gateway)
            failed = gateway.logged("call failed")
        if failed:
            raise AssertionError(f"{len(failed)} calls failed by the gateway's fault, the first: {failed[0]}")


def percentile(samples: list[float], share: float) -> float:
    """The value that this share of the samples does not exceed."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
