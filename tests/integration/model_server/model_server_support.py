"""A gateway with the model server of special_server.py."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gateway_support import running_gateway

from nst_processes import Process, free_port, running_nats

PROGRAM = Path(__file__).with_name("special_server.py")


@dataclass(frozen=True)
class Special:
    """The gateway's address, the model server, and where that tells how it is."""

    gateway: str
    process: Process
    status: str


@contextmanager
def special_server(folder: Path, **environment: str) -> Iterator[Special]:
    """It, for as long as the block runs."""
    status = f"127.0.0.1:{free_port()}"
    with running_nats(folder) as nats_url, running_gateway(folder, nats_url) as gateway:
        address = gateway.address  # the gateway makes the job store
        command = ("model-server", "--nats", nats_url, "--metrics-listen", status)
        process = Process(
            folder / "model-server.log", *command, program=[str(PROGRAM)], stdin=subprocess.PIPE, **environment
        )
        try:
            yield Special(address, process, status)
        finally:
            code = process.stop()
        assert code == 0
