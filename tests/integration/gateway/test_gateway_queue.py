"""The queue: who goes first, and what a client is told when it is full."""

from collections.abc import Iterator

import grpc
import pytest
from gateway_support import LONG, SECONDS, cancel, refusal_of, tiny_spec, update

from nst.v1 import image_pb2, job_pb2
from nst.v1.style_transfer_service_pb2 import StylizeRequest, StylizeStart
from nst_calls import Calls, calls, until
from nst_processes import running_server

BATCH, INTERACTIVE = job_pb2.PRIORITY_BATCH, job_pb2.PRIORITY_INTERACTIVE


@pytest.fixture(scope="module")
def narrow(tmp_path_factory) -> Iterator[Calls]:
    """Calls to a server that has memory for one job at a time and holds four."""
    arguments = ("--memory-limit-bytes", "1", "--max-queued-jobs", "4")
    with running_server(tmp_path_factory.mktemp("narrow"), *arguments) as server, calls(server.address) as call:
        yield call


@pytest.fixture
def blocked(narrow) -> Iterator[str]:
    """The id of a batch job that keeps the server busy until it is cancelled."""
    job_id = create(narrow, BATCH, **LONG)
    until(narrow.watch(job_id), lambda event: event.progress.iteration > 0)
    yield job_id
    cancel(narrow, job_id)
    list(narrow.watch(job_id))


def create(call: Calls, priority: int, request_id: str = "", **options: int) -> str:
    spec = tiny_spec(**options)
    spec.priority = priority
    return call.create(spec, request_id)


def start_times(call: Calls, *job_ids: str) -> list[int]:
    """When each job began to run; waits until all have ended."""
    started = []
    for job_id in job_ids:
        running = [event for event in call.watch(job_id) if event.state.state == job_pb2.JOB_STATE_RUNNING]
        started += [event.time.ToNanoseconds() for event in running]
    assert len(started) == len(job_ids)
    return started


def test_interactive_jobs_overtake_waiting_batch_jobs(narrow, blocked):
    first, second = create(narrow, BATCH), create(narrow, BATCH)
    urgent = create(narrow, INTERACTIVE)
    cancel(narrow, blocked)
    times = start_times(narrow, urgent, first, second)
    assert times[0] == min(times)


def test_a_waiting_job_can_be_moved_and_a_running_one_not(narrow, blocked):
    first, second = create(narrow, BATCH), create(narrow, BATCH)
    moved = update(narrow, second, priority=INTERACTIVE)
    assert moved.spec.priority == INTERACTIVE
    refused = refusal_of(lambda: update(narrow, blocked, priority=INTERACTIVE))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "JOB_NOT_WAITING")
    cancel(narrow, blocked)
    times = start_times(narrow, second, first)
    assert times == sorted(times)


def test_a_full_queue_says_so_and_when_to_come_again(narrow, blocked):
    waiting = [create(narrow, BATCH, request_id=f"full {number}") for number in range(3)]
    start = StylizeRequest(start=StylizeStart(spec=tiny_spec()))
    for call in (lambda: create(narrow, INTERACTIVE), lambda: narrow.making.Stylize(iter([start]), timeout=SECONDS)):
        refused = refusal_of(call)
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        assert refused.metadata == {"limit": "max_queued_jobs"}
        assert "max_queued_jobs" in refused.message
        assert refused.retry_seconds > 0
    # What is in already is found again, and a place that gets free is given away.
    assert create(narrow, BATCH, request_id="full 1") == waiting[1]
    cancel(narrow, waiting.pop())
    waiting.append(create(narrow, INTERACTIVE))
    for job_id in waiting:
        cancel(narrow, job_id)


def test_a_full_queue_refuses_before_it_looks_at_pictures(narrow, blocked):
    waiting = [create(narrow, BATCH) for _ in range(3)]
    spec = tiny_spec()
    spec.content.CopyFrom(image_pb2.Image(reference=image_pb2.ImageReference(sha256="0" * 64)))
    start = StylizeRequest(start=StylizeStart(spec=spec))
    for call in (lambda: narrow.create(spec), lambda: narrow.making.Stylize(iter([start]), timeout=SECONDS)):
        assert refusal_of(call).reason == "QUEUE_FULL"
    for job_id in waiting:
        cancel(narrow, job_id)
    assert refusal_of(lambda: narrow.create(spec)).reason == "PICTURE_NOT_FOUND"
