"""A model server takes no work before it is warm, and says so."""

from contextlib import suppress

from gateway_support import get
from model_server_support import Special, special_server


def answers_until(wanted: int, server: Special) -> set[int]:
    """What /readyz answers until it is what is wanted."""
    seen: set[int] = set()

    def asked() -> bool:
        with suppress(OSError):
            seen.add(get(server.status, "/readyz")[0])
        return wanted in seen

    server.process.wait_until(asked, f"{wanted} from /readyz")
    return seen


def test_it_is_ready_when_it_is_warm_and_not_before(tmp_path):
    with special_server(tmp_path, "warm_when_told") as server:
        assert answers_until(503, server) == {503}
        assert get(server.status, "/healthz")[0] == 200
        assert server.process.popen.stdin is not None
        server.process.popen.stdin.write(b"\n")
        server.process.popen.stdin.flush()
        assert answers_until(200, server) <= {503, 200}
