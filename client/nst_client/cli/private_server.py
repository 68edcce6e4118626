"""A server of one's own, for the length of one command."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from nst_client.errors import ServerUnavailable

# Variables of a server that others are to find: this one listens where there is room, talks no TLS, and has one NATS.
_NOT_PASSED_ON = frozenset({"NST_MODEL_METRICS_LISTEN", "NST_TLS_CERTIFICATE", "NST_TLS_KEY", "NST_REPLICAS"})
_NEEDED = ("nst_server", "nats", "torch")
_LOG_LINES = 20
_POLL_SECONDS = 0.05
_STOP_SECONDS = 30.0
_LAST_WORDS_SECONDS = 1.0
# The server, which asks the kernel (Linux) for a SIGTERM when its parent, by its number, ends and cannot stop it. It
# does so itself: a hook between fork and exec would run in a copy of a process with threads, those of gRPC among them.
_PROGRAM = """\
import ctypes, os, runpy, signal, sys
parent = int(sys.argv.pop(1))
if sys.platform == "linux":
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("the parent has ended")
runpy.run_module("nst_server", run_name="__main__", alter_sys=True)
"""


class Child:
    """The server's process and the end of its log, whose messages are shown until it is ready."""

    def __init__(self, data_dir: Path) -> None:
        command = [sys.executable, "-c", _PROGRAM, str(os.getpid()), "serve", "--listen", "127.0.0.1:0"]
        command += ["--metrics-listen", "127.0.0.1:0", "--data-dir", str(data_dir)]
        # A group of its own: Ctrl-C in the terminal is for this command, which then cancels the job in good order.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={name: value for name, value in os.environ.items() if name not in _NOT_PASSED_ON},
            process_group=0,
        )
        self._ready_file = data_dir / "server.json"
        self._tail: deque[str] = deque(maxlen=_LOG_LINES)
        self._quiet = threading.Event()
        self._broken = threading.Event()
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def wait_until_ready(self) -> str:
        """The server's address, once it accepts jobs. Raises ClickException if it, or a part of it, ends before."""
        while not self._ready_file.exists():
            if self._process.poll() is not None:
                raise self.obituary()
            if self._broken.is_set():  # it would try again for ever
                raise self._quoted("the private server does not start")
            time.sleep(_POLL_SECONDS)
        self._quiet.set()
        address: str = json.loads(self._ready_file.read_text())["address"]
        return address

    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    def obituary(self) -> click.ClickException:
        """The error that says how the process ended, with its last words."""
        self._reader.join(_LAST_WORDS_SECONDS)
        return self._quoted(f"the private server ended with code {self._process.returncode}")

    def stop(self) -> None:
        """End the process: politely, and by force if it takes too long or Ctrl-C comes again."""
        self._process.terminate()
        try:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_SECONDS)
        finally:
            # The group, because where the kernel does not end them with the server, its parts keep its data folder and
            # its log open.
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._reader.join()

    def _quoted(self, what: str) -> click.ClickException:
        words = "\n  ".join(self._tail) or "(it said nothing)"
        return click.ClickException(f"{what}:\n  {words}")

    def _read_log(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            text = line.decode(errors="replace").rstrip()
            self._tail.append(text)
            entry = _entry(text)
            if "message" in entry and not self._quiet.is_set():
                click.echo(f"server: {entry['message']}", err=True)
            if "child" in entry and entry.get("level") == "error":
                self._broken.set()


def _entry(line: str) -> dict[str, Any]:
    """What a line of the server's structured log holds; nothing if it is none, only of interest if the server dies."""
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


@contextmanager
def private_server() -> Iterator[str]:
    """The address of a server that is started here and stopped at the end.

    Raises:
        UsageError: the server is not installed.
        ClickException: it does not start, or ended by itself; the text holds the end of its log.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise click.UsageError(
            f"no server is named, and one cannot be started here ({', '.join(missing)} not installed). "
            "Give --server HOST:PORT, set NST_SERVER, or pip install '.[server]' in the source folder"
        )
    with TemporaryDirectory(prefix="nst-", ignore_cleanup_errors=True) as data_dir:
        click.echo("Starting a private server; --server HOST:PORT uses one that runs already.", err=True)
        child = Child(Path(data_dir))
        try:
            yield child.wait_until_ready()
        except ServerUnavailable as error:
            raise (child.obituary() if child.has_ended() else error) from error
        finally:
            child.stop()
