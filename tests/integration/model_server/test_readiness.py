"""A model server takes no work before it is warm, and says so."""

import http.client
import time
from contextlib import suppress

from model_server_support import Special, special_server

from nst_processes import START_SECONDS


def status(port: int, path: str) -> int | None:
    """What the process answers, if it does."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with suppress(OSError):
        connection.request("GET", path)
        return connection.getresponse().status
    return None


def wait_for(wanted: int, server: Special) -> set[int | None]:
    """What /readyz answers until it is what is wanted."""
    seen: set[int | None] = set()
    deadline = time.monotonic() + START_SECONDS
    while wanted not in seen:
        assert server.process.poll() is None
        assert time.monotonic() < deadline
        seen.add(status(server.port, "/readyz"))
        time.sleep(0.02)
    return seen


def test_it_is_ready_when_it_is_warm_and_not_before(tmp_path):
    with special_server(tmp_path, "warm_when_told") as server:
        assert wait_for(503, server) <= {None, 503}
        assert status(server.port, "/healthz") == 200
        assert server.process.stdin is not None
        server.process.stdin.write("\n")
        server.process.stdin.flush()
        assert wait_for(200, server) <= {503, 200}
