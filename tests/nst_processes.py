"""Real processes of the project, started on free ports and stopped by handle."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster import write_nats_configs

from nst_server.supervisor import find_nats_server, write_nats_config

START_SECONDS = 90.0
STOP_SECONDS = 60.0


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running_nats(
    folder: Path, storage: Mapping[str, int] | None = None, *, end: signal.Signals = signal.SIGTERM
) -> Iterator[str]:
    """The URL of a nats-server with its job store in `folder`, some settings of its storage others."""
    address = f"127.0.0.1:{free_port()}"
    config = write_nats_config(folder, address)
    settings = json.loads(config.read_text())
    settings["jetstream"] |= storage or {}
    config.write_text(json.dumps(settings))
    with nats_process(folder, address, "-c", str(config), end=end) as url:
        yield url


@contextlib.contextmanager
def running_nats_cluster(folder: Path, count: int = 3) -> Iterator[str]:
    """The URL of the first of some nats-servers that keep everything together."""
    ports, routes = ([free_port() for _ in range(count)] for _ in range(2))
    with contextlib.ExitStack() as stack:
        for port, config in write_nats_configs(folder, ports, routes).items():
            stack.enter_context(nats_process(config.parent, f"127.0.0.1:{port}", "-c", str(config)))
        yield f"nats://127.0.0.1:{ports[0]}"


@contextlib.contextmanager
def nats_process(folder: Path, address: str, *arguments: str, end: signal.Signals = signal.SIGTERM) -> Iterator[str]:
    """The URL of a nats-server that listens on `address`, as its arguments say; its log is kept in `folder`."""
    with (folder / "nats.log").open("wb") as output:
        process = subprocess.Popen([find_nats_server(), *arguments], stdout=output, stderr=output)
    try:
        _wait_until_open(address)
        yield f"nats://{address}"
    finally:
        process.send_signal(end)
        process.wait()


def _wait_until_open(address: str) -> None:
    host, port = address.split(":")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return
        time.sleep(0.02)
    raise AssertionError(f"nothing listens on {address}")


class Process:
    """One command of the project, its output kept in a file."""

    def __init__(
        self,
        log: Path,
        *command: str,
        program: Sequence[str] = ("-m", "nst_server"),
        stdin: int = subprocess.DEVNULL,
        **environment: str,
    ) -> None:
        self.log = log
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                [sys.executable, *program, *command],
                stdout=output,
                stderr=output,
                stdin=stdin,
                env={**os.environ, "NST_THREADS": "1", **environment},
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    def logged(self, message: str) -> list[dict[str, Any]]:
        """The structured log entries with this message so far."""
        entries = []
        for line in self.log.read_text().splitlines():
            if line.startswith("{") and json.loads(line)["message"] == message:
                entries.append(json.loads(line))
        return entries

    def wait_for_log(self, message: str, count: int = 1) -> dict[str, Any]:
        """Waits until a message has been logged `count` times; its latest entry."""
        self.wait_until(lambda: len(self.logged(message)) >= count, f"{message!r} in its log")
        return self.logged(message)[-1]

    def kill(self) -> None:
        """SIGKILL, as a crash would be."""
        self.popen.kill()
        self.popen.wait()

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        if self.popen.poll() is None:
            self.popen.terminate()
        try:
            return self.popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def wait_until(self, done: Callable[[], bool], what: str) -> None:
        """Waits for something of this process."""
        deadline = time.monotonic() + START_SECONDS
        while not done():
            if self.popen.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"no {what}; the end of the log:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.05)


class Server(Process):
    """`nst-server serve` with everything that belongs to it."""

    def __init__(self, data_dir: Path, *arguments: str, port: int = 0, **environment: str) -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        self.data_dir = data_dir
        self._status_file = data_dir / "server.json"
        super().__init__(
            data_dir / "server.log",
            "serve",
            *("--data-dir", str(data_dir), "--listen", f"127.0.0.1:{port}", "--metrics-listen", "127.0.0.1:0"),
            *arguments,
            **environment,
        )

    def wait_ready(self) -> "Server":
        """Waits until every part answers."""
        self.wait_until(self._status_file.exists, "server.json")
        return self

    @property
    def status(self) -> dict[str, Any]:
        """What server.json says: addresses and process ids."""
        status: dict[str, Any] = json.loads(self._status_file.read_text())
        return status

    @property
    def address(self) -> str:
        return str(self.status["address"])

    def kill_child(self, name: str) -> int:
        """SIGKILLs one part; returns the process id it had."""
        pid = int(self.status["pids"][name])
        os.kill(pid, signal.SIGKILL)
        return pid

    def wait_restarted(self, name: str, old_pid: int) -> None:
        """Waits until the supervisor has put another process in the place of the killed one."""
        self.wait_until(lambda: self.status["pids"][name] not in (old_pid, None), f"restart of {name}")


@contextlib.contextmanager
def running_server(data_dir: Path, *arguments: str, **environment: str) -> Iterator[Server]:
    """A whole server for as long as the block runs."""
    server = Server(data_dir, *arguments, **environment)
    try:
        yield server.wait_ready()
    finally:
        server.stop()
