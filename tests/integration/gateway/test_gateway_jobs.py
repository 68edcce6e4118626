"""CreateJob and JobService: one request is one job, and every job is found, changed or refused by its id."""

import math
from itertools import pairwise
from uuid import uuid4

import grpc
import pytest
from gateway_support import (
    CONTENT,
    LONG,
    SECONDS,
    assert_invalid,
    calls_by_job,
    cancel,
    delete,
    refusal_of,
    result_bytes,
    run_tiny,
    tiny_spec,
    update,
    upload,
)

from nst.v1 import image_pb2, job_pb2
from nst.v1 import job_service_pb2 as jobs_pb2
from nst.v1.style_transfer_service_pb2 import CreateJobRequest
from nst_calls import metric, until
from nst_engine.options import StylizeOptions

QUEUED, RUNNING, CANCELLED = job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_CANCELLED


def iterations_done(server) -> float:
    return metric(server.status["model_metrics_address"], "nst_engine_iterations_total")


def test_one_request_sent_ten_times_at_once_is_one_job_and_one_run(server, call):
    request = CreateJobRequest(request_id=str(uuid4()), spec=tiny_spec(iterations=7))
    before = iterations_done(server)
    pending = [call.making.CreateJob.future(request, timeout=SECONDS) for _ in range(10)]
    (job_id,) = {answer.result().job.job_id for answer in pending}
    events = list(call.watch(job_id))
    assert [event.state.state for event in events if event.HasField("state")] == [QUEUED, RUNNING]
    assert iterations_done(server) - before == 7
    again = call.making.CreateJob(request, timeout=SECONDS).job
    assert (again.job_id, again.attempt, again.last_sequence) == (job_id, 1, events[-1].sequence)
    assert again.state == job_pb2.JOB_STATE_SUCCEEDED


def test_a_request_id_belongs_to_its_contents(idle):
    request_id = str(uuid4())
    idle.create(tiny_spec(), request_id)
    for other in (tiny_spec(iterations=4), tiny_spec(styles=2), tiny_spec(seed=1)):
        refused = refusal_of(lambda other=other: idle.create(other, request_id))
        assert (refused.code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
        assert list(refused.fields) == ["request_id"]
        assert "use a new one" in refused.message


def test_the_same_contents_in_another_form_are_the_same_request(idle):
    request_id = str(uuid4())
    by_reference = tiny_spec()
    by_reference.content.CopyFrom(image_pb2.Image(reference=upload(idle, CONTENT).reference))
    assert idle.create(tiny_spec(), request_id) == idle.create(by_reference, request_id)


def test_a_request_id_is_a_tenants_own(idle):
    request = CreateJobRequest(request_id=str(uuid4()), spec=tiny_spec())
    jobs = [
        idle.making.CreateJob(request, metadata=[("x-nst-tenant", tenant)], timeout=SECONDS).job
        for tenant in ("one", "two")
    ]
    assert [job.tenant for job in jobs] == ["one", "two"]
    assert jobs[0].job_id != jobs[1].job_id


def assert_not_found(call, job_id: str) -> None:
    for request, method in calls_by_job(call).items():
        refused = refusal_of(lambda method=method, request=request: method(request(job_id=job_id), timeout=SECONDS))
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND"), request
        assert list(refused.fields) == ["job_id"]
        assert job_id in refused.message


def test_unknown_jobs(call):
    assert_not_found(call, "0" * 32)


@pytest.mark.parametrize("job_id", ["", "a.b", "*", ">", "a b", "../../etc", "é" * 4, "x" * 65, "\N{GRINNING FACE}"])
def test_malformed_job_ids(call, job_id):
    for request, method in calls_by_job(call).items():
        assert_invalid(
            lambda method=method, request=request: method(request(job_id=job_id), timeout=SECONDS),
            request,
            "job_id",
            "CreateJob returned",
        )


def assert_precondition(call, reason: str, words: str) -> None:
    refused = refusal_of(call)
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, reason)
    assert words in refused.message


def test_a_job_without_a_result(idle):
    job_id = idle.create(tiny_spec())
    assert_precondition(lambda: result_bytes(idle, job_id), "NO_RESULT", "JOB_STATE_QUEUED")
    cancel(idle, job_id)
    assert_precondition(lambda: result_bytes(idle, job_id), "NO_RESULT", "JOB_STATE_CANCELLED")


def test_an_ended_job_cannot_change_and_can_be_deleted(call):
    job_id = run_tiny(call).job_id
    for change in ({"strength": 0.7}, {"paused": True}, {"priority": job_pb2.PRIORITY_BATCH}):
        assert_precondition(lambda change=change: update(call, job_id, **change), "JOB_ENDED", "has ended")
    assert cancel(call, job_id).state == job_pb2.JOB_STATE_SUCCEEDED
    delete(call, job_id)
    assert_not_found(call, job_id)
    listed = call.jobs.ListJobs(jobs_pb2.ListJobsRequest(page_size=500), timeout=SECONDS).jobs
    assert job_id not in {job.job_id for job in listed}


def test_a_live_job_cannot_be_deleted(call, idle):
    waiting = idle.create(tiny_spec())
    assert_precondition(lambda: delete(idle, waiting), "JOB_NOT_ENDED", "cancel it first")
    running = call.create(tiny_spec(**LONG))
    events = call.watch(running)
    until(events, lambda event: event.progress.iteration > 0)
    assert_precondition(lambda: delete(call, running), "JOB_NOT_ENDED", "cancel it first")
    cancel(call, running)
    *_, last = events
    assert last.job_state == CANCELLED
    delete(call, running)


def test_cancelling_twice_changes_nothing_more(idle):
    job_id = idle.create(tiny_spec())
    first, second = cancel(idle, job_id), cancel(idle, job_id)
    assert first.state == second.state == CANCELLED
    assert first.last_sequence == second.last_sequence
    assert [event.job_state for event in idle.watch(job_id)] == [QUEUED, CANCELLED]


BALANCED, RAW, HOLE = tiny_spec(), tiny_spec(content_weight=1.0), tiny_spec()
HOLE.hole.CopyFrom(HOLE.content)
CONTENT_LAYER, LAYER = next(iter(StylizeOptions().content_layers)), next(iter(StylizeOptions().style_layers))
UPDATES = {
    "strength of raw weights": (RAW, {"strength": 0.5}, "strength", "content_weight"),
    "content weight under strength": (BALANCED, {"content_weight": 2.0}, "content_weight", "change strength"),
    "style weight under strength": (BALANCED, {"style_weight": 2.0}, "style_weight", "change strength"),
    "strength above 1": (BALANCED, {"strength": 1.01}, "strength", "from 0 to 1"),
    "strength below 0": (BALANCED, {"strength": -0.01}, "strength", "from 0 to 1"),
    "no strength": (BALANCED, {"strength": math.nan}, "strength", "from 0 to 1"),
    "a negative content weight": (RAW, {"content_weight": -1.0}, "content_weight", "from 0"),
    "an infinite style weight": (RAW, {"style_weight": math.inf}, "style_weight", "from 0"),
    "a negative tv weight": (BALANCED, {"tv_weight": -1.0}, "tv_weight", "from 0"),
    "too few shares": (tiny_spec(styles=2), {"style_shares": [1.0]}, "style_shares", "2, not 1"),
    "too many shares": (BALANCED, {"style_shares": [1.0, 2.0]}, "style_shares", "1, not 2"),
    "a negative share": (tiny_spec(styles=2), {"style_shares": [1.0, -1.0]}, "style_shares[1]", "from 0"),
    "a share that is no number": (BALANCED, {"style_shares": [math.nan]}, "style_shares[0]", "from 0"),
    "no share above 0": (BALANCED, {"style_shares": [0.0]}, "style_shares", "above 0"),
    "a tap that the job has not": (
        BALANCED,
        {"content_layers": {"relu1_1": 1.0}},
        "content_layers.relu1_1",
        "no target at this tap",
    ),
    "no tap at all": (BALANCED, {"style_layers": {"relu77": 1.0}}, "style_layers.relu77", "no target at this tap"),
    "no layer above 0": (BALANCED, {"style_layers": {LAYER: 0.0}}, "style_layers", "above 0"),
    "a negative layer": (BALANCED, {"style_layers": {LAYER: -1.0}}, f"style_layers.{LAYER}", "from 0"),
    "a layer that is no number": (BALANCED, {"style_layers": {LAYER: math.nan}}, f"style_layers.{LAYER}", "from 0"),
    "content layers of a hole": (HOLE, {"content_layers": {CONTENT_LAYER: 1.0}}, "content_layers", "fills a hole"),
    "no iterations": (BALANCED, {"iterations": 0}, "iterations", "from 1"),
    "more iterations than the server does": (BALANCED, {"iterations": 5001}, "iterations", "max_iterations = 5000"),
    "an unknown priority": (BALANCED, {"priority": 9}, "priority", "9"),
}


@pytest.mark.parametrize("case", UPDATES)
def test_an_update_that_does_not_fit_the_job(idle, case):
    spec, change, field, words = UPDATES[case]
    job_id = idle.create(spec)
    before = idle.get(job_id)
    assert_invalid(lambda: update(idle, job_id, **change), jobs_pb2.UpdateJobRequest, f"update.{field}", words)
    assert idle.get(job_id) == before


def pages(call, size: int, *states: int) -> list[list[job_pb2.Job]]:
    found, token = [], ""
    while not found or token:
        request = jobs_pb2.ListJobsRequest(page_size=size, page_token=token, states=states)
        answer = call.jobs.ListJobs(request, timeout=SECONDS)
        found.append(list(answer.jobs))
        token = answer.next_page_token
    return found


def test_pages_list_every_job_once_newest_first(idle):
    created = [idle.create(tiny_spec()) for _ in range(7)]
    listed = pages(idle, 3)
    assert {len(page) for page in listed[:-1]} == {3}
    jobs = [job for page in listed for job in page]
    assert [job.job_id for job in jobs[:7]] == created[::-1]
    assert len({job.job_id for job in jobs}) == len(jobs)
    assert all(
        earlier.create_time.ToNanoseconds() >= later.create_time.ToNanoseconds() for earlier, later in pairwise(jobs)
    )
    assert jobs == [job for page in pages(idle, 500) for job in page]


def test_jobs_made_while_paging_do_not_shift_the_pages(idle):
    created = [idle.create(tiny_spec()) for _ in range(4)]
    first = idle.jobs.ListJobs(jobs_pb2.ListJobsRequest(page_size=2), timeout=SECONDS)
    idle.create(tiny_spec())
    second = idle.jobs.ListJobs(
        jobs_pb2.ListJobsRequest(page_size=2, page_token=first.next_page_token), timeout=SECONDS
    )
    assert [job.job_id for job in (*first.jobs, *second.jobs)] == created[::-1]


def test_jobs_are_listed_by_state(idle):
    created = [idle.create(tiny_spec()) for _ in range(5)]
    cancelled = created[1::2]
    for job_id in cancelled:
        cancel(idle, job_id)
    ended = [job for page in pages(idle, 2, CANCELLED) for job in page]
    assert {job.state for job in ended} == {CANCELLED}
    assert [job.job_id for job in ended[:2]] == cancelled[::-1]
    either = [job.job_id for page in pages(idle, 2, CANCELLED, QUEUED) for job in page]
    assert either[:5] == created[::-1]
    failed = [job.job_id for page in pages(idle, 2, job_pb2.JOB_STATE_FAILED) for job in page]
    assert not {*failed} & {*created}


@pytest.mark.parametrize("token", ["nonsense", "bm9uc2Vuc2U=", "OTk5", "\N{GRINNING FACE}", "9" * 10_000])
def test_a_page_token_from_elsewhere(idle, token):
    request = jobs_pb2.ListJobsRequest(page_token=token)
    assert_invalid(lambda: idle.jobs.ListJobs(request, timeout=SECONDS), request, "page_token", "ListJobs returned")


@pytest.mark.parametrize("state", [0, 99])
def test_a_state_that_no_job_is_in(idle, state):
    request = jobs_pb2.ListJobsRequest(states=[state])
    assert_invalid(lambda: idle.jobs.ListJobs(request, timeout=SECONDS), request, "states", str(state))


def test_a_watch_goes_on_where_it_is_told(call):
    job_id = run_tiny(call).job_id
    everything = list(call.watch(job_id))
    for after in range(len(everything) + 1):
        assert list(call.watch(job_id, after)) == everything[after:]
    assert list(call.watch(job_id, 2**63)) == []
