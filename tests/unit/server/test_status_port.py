"""The port that shows metrics and health."""

from functools import partialmethod
from http.client import HTTPConnection
from socketserver import BaseServer
from threading import Thread

import pytest

from nst_server.status_port import StatusPort


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


def test_it_closes_without_waiting_for_its_thread_to_look(monkeypatch):
    """A process that ends closes it, and whoever stops the process waits."""
    seldom = partialmethod(BaseServer.serve_forever, poll_interval=600.0)
    monkeypatch.setattr(BaseServer, "serve_forever", seldom)
    port = StatusPort("127.0.0.1", 0, lambda: True)
    closing = Thread(target=port.close, daemon=True)
    closing.start()
    closing.join(30)
    assert not closing.is_alive()
    with pytest.raises(ConnectionRefusedError):
        HTTPConnection("127.0.0.1", port.port, timeout=10).connect()
