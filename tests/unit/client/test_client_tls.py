"""TLS, with a certificate made for the test."""

import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner
from scripted_server import ScriptedServer

from nst_client import Client, ServerUnavailable
from nst_client.cli import nst


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that vouches for itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-nodes",
        "-days",
        "1",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
    ]
    command += ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


@pytest.fixture
def server(certificate: tuple[Path, Path]) -> Iterator[ScriptedServer]:
    chain, key = (path.read_bytes() for path in certificate)
    with ScriptedServer(credentials=grpc.ssl_server_credentials([(key, chain)])) as scripted:
        yield scripted


def test_with_the_right_authority(server: ScriptedServer, certificate: tuple[Path, Path]) -> None:
    credentials = grpc.ssl_channel_credentials(certificate[0].read_bytes())
    with Client(server.address, tls=credentials) as client:
        assert client.server_info().version == "scripted"


@pytest.mark.parametrize("credentials", [None, grpc.ssl_channel_credentials()], ids=["no TLS", "another authority"])
def test_otherwise_the_error_asks_about_tls(
    server: ScriptedServer, credentials: grpc.ChannelCredentials | None
) -> None:
    with Client(server.address, tls=credentials) as client, pytest.raises(ServerUnavailable, match="is it TLS or not"):
        client.server_info()


def test_the_command_takes_an_authority(server: ScriptedServer, certificate: tuple[Path, Path]) -> None:
    ended = CliRunner().invoke(nst, ["info", "--server", server.address, "--ca", str(certificate[0])])
    assert ended.exit_code == 0
    assert "scripted" in ended.output
    assert isinstance(
        CliRunner().invoke(nst, ["info", "--server", server.address, "--tls"]).exception, ServerUnavailable
    )


def test_a_file_without_certificates_is_named(
    server: ScriptedServer, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    der = tmp_path / "ca.der"
    der.write_bytes(ssl.PEM_cert_to_DER_cert(certificate[0].read_text()))
    for wrong in (der, certificate[1]):
        run = CliRunner().invoke(nst, ["info", "--server", server.address, "--ca", str(wrong)])
        assert run.exit_code == 2
        assert f"--ca: {wrong} has no certificates in PEM form" in run.output
