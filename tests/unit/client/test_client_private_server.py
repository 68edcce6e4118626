"""A private server lives as long as its command. A small program stands in for the server's own."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import grpc
import psutil
import pytest

from nst_client import Client, ServerUnavailable
from nst_client.cli import private_server as module
from nst_client.cli.private_server import private_server

# Answers GetServerInfo, and leaves a note when it is told to stop.
SERVER = """\
import json, os, pathlib, signal, sys
sys.path.insert(0, {tests!r})
from scripted_server import ScriptedServer

assert sys.argv[1:6] == ["serve", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"], sys.argv
assert sys.argv[6] == "--data-dir"
folder = pathlib.Path(sys.argv[7])
print("a banner", file=sys.stderr)
print(json.dumps({{"level": "info", "message": "fetching weights"}}), file=sys.stderr, flush=True)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
with ScriptedServer() as server:
    (folder / "part").write_text(json.dumps({{"address": server.address, "pid": os.getpid()}}))
    (folder / "part").rename(folder / "server.json")
    signal.sigwait([signal.SIGTERM])
pathlib.Path({note!r}).write_text("stopped in good order")
"""
DYING = "import sys; sys.exit('no port is free')"
RESTARTING = """\
import json, signal, sys
print("ValueError: there is no such device", file=sys.stderr)
entry = {"level": "error", "message": "child died, starting it again", "child": "model-server"}
print(json.dumps(entry), file=sys.stderr, flush=True)
signal.pause()
"""


@pytest.fixture
def children() -> Callable[[], list[psutil.Process]]:
    """The child processes that a test has; other tests of this worker may keep a server."""
    before = psutil.Process().children()
    return lambda: [child for child in psutil.Process().children() if child not in before]


@pytest.fixture
def note(tmp_path: Path) -> Path:
    return tmp_path / "note"


@pytest.fixture
def install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, children: Callable[[], list[psutil.Process]]
) -> Iterator[Path]:
    """A folder whose `nst_server` is what child processes find, and where data folders are made."""
    package = tmp_path / "site" / "nst_server"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(package.parent), prepend=os.pathsep)
    data = tmp_path / "data"
    data.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(data))
    yield package / "__main__.py"
    assert not list(data.iterdir())  # nothing is left behind
    assert not children()


def test_it_serves_and_stops_in_good_order(
    install: Path, note: Path, children: Callable[[], list[psutil.Process]], capsys: pytest.CaptureFixture[str]
) -> None:
    install.write_text(SERVER.format(tests=str(Path(__file__).parent), note=str(note)))
    with private_server() as address:
        with Client(address) as client:
            assert client.server_info().version == "scripted"
        (child,) = children()
        assert os.getpgid(child.pid) == child.pid  # so Ctrl-C in a terminal does not reach it
        assert not note.exists()
    assert note.read_text() == "stopped in good order"
    shown = capsys.readouterr()
    assert "server: fetching weights\n" in shown.err
    assert "banner" not in shown.err
    assert shown.out == ""


def test_settings_of_a_server_for_others_are_not_its_own(
    install: Path, note: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meant_for_others = ("NST_MODEL_METRICS_LISTEN", "NST_TLS_CERTIFICATE", "NST_TLS_KEY", "NST_REPLICAS")
    for name in meant_for_others:
        monkeypatch.setenv(name, "of another")
    monkeypatch.setenv("NST_THREADS", "1")
    check = f"import os; assert not os.environ.keys() & {meant_for_others}; assert os.environ['NST_THREADS'] == '1'\n"
    install.write_text(check + SERVER.format(tests=str(Path(__file__).parent), note=str(note)))
    with private_server():
        pass


def test_one_that_dies_early_is_quoted(install: Path) -> None:
    install.write_text(DYING)
    with pytest.raises(click.ClickException, match="no port is free"), private_server():
        pass


def test_one_whose_part_dies_early_is_quoted(install: Path) -> None:
    install.write_text(RESTARTING)
    text = "does not start:\n  ValueError: there is no such device"
    with pytest.raises(click.ClickException, match=text), private_server():
        pass


def test_one_that_dies_later_is_quoted(install: Path, note: Path, children: Callable[[], list[psutil.Process]]) -> None:
    install.write_text(SERVER.format(tests=str(Path(__file__).parent), note=str(note)))

    def use() -> None:
        with private_server() as address:
            (child,) = children()
            child.kill()
            child.wait()
            raise ServerUnavailable(grpc.StatusCode.UNAVAILABLE, "gone", address=address)

    with pytest.raises(click.ClickException, match="a banner"):
        use()


def test_the_command_uses_it(install: Path, note: Path) -> None:
    install.write_text(SERVER.format(tests=str(Path(__file__).parent), note=str(note)))
    environment = {key: value for key, value in os.environ.items() if key != "NST_SERVER"}
    environment["TMPDIR"] = str(install.parents[2] / "data")
    command = [sys.executable, "-c", "from nst_client.cli import main; main()", "info", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=True)
    assert '"version": "scripted"' in ended.stdout
    assert note.exists()


def test_ctrl_c_while_it_starts_stops_it(install: Path) -> None:
    install.write_text('import signal; print(\'{"message": "starting"}\', flush=True); signal.pause()')
    environment = {**os.environ, "TMPDIR": str(install.parents[2] / "data")}
    environment.pop("NST_SERVER", None)
    command = [sys.executable, "-c", "from nst_client.cli import main; main()", "info"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        while "starting" not in process.stderr.readline():
            pass
        (child,) = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert not child.is_running()


def test_it_ends_with_a_command_that_is_killed(install: Path, note: Path, tmp_path: Path) -> None:
    install.write_text(SERVER.format(tests=str(Path(__file__).parent), note=str(note)))
    program = "from nst_client.cli.private_server import private_server\nwith private_server() as a: print(a), input()"
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", program], text=True, env=environment, **streams) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (child,) = psutil.Process(process.pid).children()
        process.kill()
        psutil.wait_procs([child], timeout=60)
    assert note.read_text() == "stopped in good order"


def test_without_the_servers_packages_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "torch" else object())
    with (
        pytest.raises(click.UsageError, match=r"torch not installed.*pip install '\.\[server\]' in the source"),
        private_server(),
    ):
        pass
