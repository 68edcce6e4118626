"""Gateways over real sockets, and the check that no test has hurt them."""

from collections.abc import Iterator

import pytest
from gateway_support import CONTENT, live_jobs, run_tiny, running_gateway, upload, wait_until

from nst.v1 import image_pb2, job_pb2
from nst.v1 import style_transfer_service_pb2 as making_pb2
from nst_calls import Calls, calls
from nst_processes import Server, running_nats


@pytest.fixture(scope="session")
def call(server: Server) -> Iterator[Calls]:
    """Calls to the shared server."""
    with calls(server.address) as call:
        yield call


@pytest.fixture(scope="session")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Calls]:
    """Calls to a gateway without a model server, where jobs wait for ever."""
    folder = tmp_path_factory.mktemp("idle")
    with (
        running_nats(folder) as nats_url,
        running_gateway(folder, nats_url, NST_HEARTBEAT_SECONDS="0.1") as gateway,
        calls(gateway.address) as call,
    ):
        yield call
        assert gateway.logged("call failed") == []


@pytest.fixture(autouse=True)
def _unharmed(call: Calls) -> Iterator[None]:
    """After every test the server answers and takes pictures."""
    yield
    assert call.making.GetServerInfo(making_pb2.GetServerInfoRequest(), timeout=30).models
    taken = upload(call, CONTENT)
    assert (taken.width, taken.height) == (48, 32)


@pytest.fixture(autouse=True, scope="module")
def _still_the_same_server(server: Server, call: Calls) -> Iterator[None]:
    """After a module the same processes run jobs, none is left over, and no call failed by the server's fault."""
    processes = server.status["pids"]
    yield
    assert run_tiny(call).job_state == job_pb2.JOB_STATE_SUCCEEDED
    wait_until(lambda: not live_jobs(call), "every job ended")
    assert server.status["pids"] == processes
    assert server.logged("call failed") == []


@pytest.fixture(scope="session")
def content(call: Calls) -> image_pb2.Image:
    """A picture that the shared server holds."""
    return image_pb2.Image(reference=upload(call, CONTENT).reference)
