"""The port that shows metrics and health."""

from http.client import HTTPConnection

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
