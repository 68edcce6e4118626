"""What `nst-server` refuses before it starts anything, and what it gives its children."""

import gc
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from nst_server import supervisor
from nst_server.config import GatewaySettings, StoreSettings
from nst_server.main import main, tls_pair


def test_a_level_of_logs_that_is_none_is_a_usage_error() -> None:
    ended = CliRunner().invoke(main, ["--log-level", "bogus", "serve"])
    assert ended.exit_code == 2
    assert "'bogus' is not one of 'debug'" in ended.output


def test_a_data_folder_that_cannot_be_made_is_named() -> None:
    ended = CliRunner().invoke(main, ["serve", "--data-dir", "/proc/x", "--listen", "127.0.0.1:0"])
    assert ended.exit_code == 1
    assert ended.output == "Error: [Errno 2] No such file or directory: '/proc/x'\n"


@pytest.fixture
def start_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that comes as far as to start something fails."""
    monkeypatch.setattr("nst_server.supervisor.supervise", None)


@pytest.mark.usefixtures("start_nothing")
def test_one_nats_cannot_keep_more_than_one_copy() -> None:
    ended = CliRunner().invoke(main, ["serve", "--replicas", "3"])
    assert ended.exit_code == 2
    assert "replicas: there is one NATS" in ended.output


@pytest.mark.usefixtures("start_nothing")
@pytest.mark.parametrize("kind", [GatewaySettings, StoreSettings])
def test_what_a_child_would_refuse_is_a_usage_error(monkeypatch: pytest.MonkeyPatch, kind: type[Any]) -> None:
    @dataclass(frozen=True)
    class Refused(kind):
        def __post_init__(self) -> None:
            raise ValueError("a setting is wrong")

    monkeypatch.setattr(f"nst_server.main.{kind.__name__}", Refused)
    ended = CliRunner().invoke(main, ["serve"])
    assert ended.exit_code == 2
    assert "a setting is wrong" in ended.output


@pytest.fixture
def key_pairs(tmp_path: Path) -> list[tuple[Path, Path]]:
    """Two certificates, each with its key; the second key has a password."""
    pairs = [(tmp_path / f"{name}.pem", tmp_path / f"{name}.key") for name in ("one", "other")]
    for (certificate, key), secret in zip(pairs, (["-nodes"], ["-passout", "pass:secret"]), strict=True):
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/CN=t"]
        subprocess.run([*command, *secret, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return pairs


@pytest.mark.usefixtures("start_nothing")
@pytest.mark.parametrize(
    "command", [["serve"], ["gateway", "--nats", "nats://127.0.0.1:1"]], ids=lambda parts: parts[0]
)
def test_what_is_no_certificate_and_its_key_is_a_usage_error(
    key_pairs: list[tuple[Path, Path]], command: list[str]
) -> None:
    (one, its_key), (other, secret_key) = key_pairs
    for certificate, key in ((its_key, one), (other, its_key), (other, secret_key)):
        given = ["--tls-certificate", str(certificate), "--tls-key", str(key)]
        ended = CliRunner().invoke(main, [*command, *given])
        assert ended.exit_code == 2
        assert "--tls-certificate and --tls-key are no certificate and its key" in ended.output
    assert tls_pair(one, its_key) is not None


def test_children_are_given_as_long_to_end_as_their_settings_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[supervisor.Plan] = []

    async def supervise(plan: supervisor.Plan) -> None:
        plans.append(plan)

    monkeypatch.setattr(supervisor, "supervise", supervise)
    settings = ["--drain-seconds", "100", "--hand-back-seconds", "200"]
    ended = CliRunner().invoke(main, ["serve", "--data-dir", str(tmp_path), *settings])
    assert ended.exit_code == 0, ended.output
    addresses = supervisor.Addresses("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", "127.0.0.1:4")
    given = {child.name: child.stop_seconds for child in supervisor.make_children(plans[0], addresses)}
    assert given["gateway"] > 100
    assert given["model-server"] > 200


def test_a_child_that_refuses_its_settings_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    children = [
        supervisor.Child("other", ["sleep", "60"], {}),
        supervisor.Child("refusing", ["sh", "-c", "sleep 0.5; exit 2"], {}, refusal=2),
    ]
    monkeypatch.setattr(supervisor, "make_children", lambda *_: children)
    free = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
    ended = CliRunner().invoke(main, ["serve", "--data-dir", str(tmp_path), *free])
    assert ended.exit_code == 1
    assert "Error: refusing refuses its settings" in ended.output
    assert not psutil.pid_exists(children[0].pid)


@pytest.fixture
def frozen() -> Iterator[list[int]]:
    """Where a command may note how many objects are spared from the search for garbage; afterwards none is."""
    gc.unfreeze()
    yield []
    gc.unfreeze()


def test_a_model_server_never_looks_for_garbage_among_what_it_has_loaded(
    monkeypatch: pytest.MonkeyPatch, frozen: list[int]
) -> None:
    async def serve(*_: object) -> None:
        assert gc.isenabled()
        frozen.append(gc.get_freeze_count())

    monkeypatch.setattr("nst_server.model_server.app.serve", serve)
    ended = CliRunner().invoke(main, ["model-server", "--nats", "nats://127.0.0.1:1"])
    assert ended.exit_code == 0, ended.output
    assert frozen[0] > 100_000  # torch alone has more
