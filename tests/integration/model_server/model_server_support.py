"""A gateway with a model server that is not like others."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gateway_support import running_gateway

from nst_processes import free_port, running_nats

PROGRAM = Path(__file__).with_name("special_server.py")


@dataclass(frozen=True)
class Special:
    """The gateway's address, and the model server with the port that tells how it is."""

    address: str
    process: subprocess.Popen[str]
    port: int


@contextmanager
def special_server(folder: Path, how: str, **environment: str) -> Iterator[Special]:
    """A model server that is changed by the function `how` of special_server.py."""
    port = free_port()
    with (
        running_nats(folder) as nats_url,
        running_gateway(folder, nats_url) as gateway,
        (folder / "model-server.log").open("w") as log,
    ):
        address = gateway.address  # the gateway makes the job store
        arguments = ["model-server", "--nats", nats_url, "--metrics-listen", f"127.0.0.1:{port}"]
        process = subprocess.Popen(
            [sys.executable, PROGRAM, how, *arguments],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            text=True,
            env={**os.environ, "NST_THREADS": "1", **environment},
        )
        try:
            yield Special(address, process, port)
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
