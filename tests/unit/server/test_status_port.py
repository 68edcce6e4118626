"""The port that shows metrics and health."""

from http.client import HTTPConnection
from time import monotonic

import pytest

from nst_server.metrics import StatusPort


@pytest.mark.parametrize(
    ("host", "reached"), [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("[::1]", "::1"), ("[::]", "::1")]
)
def test_it_answers_on_addresses_of_either_kind(host, reached):
    port = StatusPort(host, 0, lambda: True)
    try:
        connection = HTTPConnection(reached, port.port, timeout=10)
        connection.request("GET", "/readyz")
        assert connection.getresponse().status == 200
        connection.close()
    finally:
        port.close()


def test_it_closes_at_once():
    """A process that ends closes it, and whoever stops the process waits."""
    seconds = []
    for _ in range(3):
        port = StatusPort("127.0.0.1", 0, lambda: True)
        start = monotonic()
        port.close()
        seconds.append(monotonic() - start)
        with pytest.raises(ConnectionRefusedError):
            HTTPConnection("127.0.0.1", port.port, timeout=10).connect()
    assert min(seconds) < 0.25  # half of what serve_forever sleeps at a time
