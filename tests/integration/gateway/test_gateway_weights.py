"""A model server that lacks weights, or memory, goes on with other jobs, and leaves what it cannot do to others."""

import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from gateway_support import cancel, running_gateway, tiny_spec, update, wait_until
from google.rpc import code_pb2

from nst.v1 import job_pb2, options_pb2
from nst.v1.style_transfer_service_pb2 import GetServerInfoRequest
from nst_calls import Calls, assert_gapless, calls, until
from nst_engine import weights
from nst_processes import Process, running_nats

CAFFE, TORCHVISION = "vgg16-caffe", "vgg16-torchvision"
QUEUED, RUNNING = job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_RUNNING


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

    def hold(self) -> None:
        """Lets those who ask from now on wait for the next release."""
        self.asked.clear()
        self.released.clear()

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Lacking:
    """A job store and a gateway, and model servers in the order in which they are started.

    `waiting` are jobs of a model whose weights nobody has, taken in before that was known; one of them is paused.
    """

    def __init__(self, folder: Path, nats_url: str, call: Calls, index: Index) -> None:
        self.call = call
        self.index = index
        self.waiting = [call.create(tiny_spec(model=CAFFE)) for _ in range(3)]
        update(call, self.waiting[-1], paused=True)
        self._folder = folder
        self._nats_url = nats_url
        self._started: list[Process] = []

    def start(self, name: str, budget: int, *models: str, **environment: str) -> None:
        """A model server with the weights of these models alone, as far as it knows, which all are the same."""
        cache = self._folder / f"{name} cache"
        for model in models:
            weights.import_file(model, weights.locate(CAFFE), cache)
        arguments = ("model-server", "--nats", self._nats_url, "--metrics-listen", "127.0.0.1:0")
        settings = {"NST_CACHE": str(cache), "NST_WARM_MODELS": models[0], "NST_MEMORY_BUDGET_BYTES": str(budget)}
        process = Process(self._folder / f"{name}.log", *arguments, **settings, **environment)
        self._started.append(process)
        process.wait_for_log("model server ready")

    def stop(self) -> None:
        for process in self._started:
            process.stop()


@pytest.fixture(scope="module")
def lacking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lacking]:
    """Among them is one that lacks weights, and memory for all but small pictures."""
    folder = tmp_path_factory.mktemp("lacking")
    with (
        closing(Index()) as index,
        running_nats(folder) as nats_url,
        running_gateway(folder, nats_url) as gateway,
        calls(gateway.address) as call,
    ):
        lacking = Lacking(folder, nats_url, call, index)
        try:
            lacking.start("lacking", 2**23, TORCHVISION, NST_MAX_RUNNING_JOBS="5", **index.environment)
            yield lacking
        finally:
            lacking.stop()


@pytest.fixture(scope="module")
def equipped(lacking: Lacking) -> None:
    """From here on there is another besides, which lacks neither."""
    lacking.start("equipped", 2**30, CAFFE, TORCHVISION)
    wait_until(lambda: CAFFE in available(lacking.call), "it told what it has")


def large_spec() -> job_pb2.JobSpec:
    spec = tiny_spec(size=96, precision=options_pb2.PRECISION_FLOAT32, model=TORCHVISION)
    spec.options.style_statistic = options_pb2.STYLE_STATISTIC_SLICED
    return spec


def handed_back(events: list[job_pb2.JobEvent]) -> list[str]:
    """Why the job went back to the queue after an attempt."""
    return [event.state.reason for event in events if event.state.state == QUEUED and event.attempt]


def test_other_jobs_run_while_weights_are_fetched_and_only_who_needs_them_fails(lacking):
    call, index = lacking.call, lacking.index
    waiting, leaving, _ = lacking.waiting
    assert index.asked.wait(60)
    assert list(call.watch(call.create(tiny_spec(model=TORCHVISION))))[-1].HasField("result")
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


def test_a_job_that_is_too_large_for_all_fails(lacking):
    """As nothing but its options can help."""
    refused = list(lacking.call.watch(lacking.call.create(large_spec())))[-1].error
    assert (refused.code, refused.reason) == (code_pb2.INVALID_ARGUMENT, "BAD_OPTION")


def test_a_job_goes_to_a_server_that_has_the_weights(lacking, request):
    call, index = lacking.call, lacking.index
    *_, job_id = lacking.waiting
    index.hold()
    update(call, job_id, paused=False)
    assert index.asked.wait(60)
    watching = call.watch(job_id)
    events = until(watching, lambda event: event.state.state == RUNNING)
    request.getfixturevalue("equipped")
    index.released.set()
    events += list(watching)
    assert_gapless(events)
    assert events[-1].HasField("result")
    assert handed_back(events) == [f"is left to a model server that has the weights of {CAFFE}"]
    # The next ones do not come to the one that lacks them at all, however idle it is.
    for _ in range(3):
        later = list(call.watch(call.create(tiny_spec(model=CAFFE))))
        assert later[-1].HasField("result")
        assert later[-1].attempt == 1


@pytest.mark.usefixtures("equipped")
def test_a_job_that_is_too_large_for_one_server_goes_to_a_larger_one(lacking):
    for _ in range(3):  # whichever is given them first
        events = list(lacking.call.watch(lacking.call.create(large_spec())))
        assert_gapless(events)
        assert events[-1].HasField("result")
        assert handed_back(events) in ([], ["is left to a model server with a larger memory budget"])


def available(call: Calls) -> set[str]:
    """The models that some model server has."""
    info = call.making.GetServerInfo(GetServerInfoRequest(), timeout=30)
    return {model.name for model in info.models if model.available}
