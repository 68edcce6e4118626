"""Jobs that are paused, resumed, cancelled and made again, in every order that clients do it."""

from gateway_support import LONG, cancel, delete, run_tiny, tiny_spec, update

from nst.v1 import job_pb2
from nst_calls import assert_gapless, until

QUEUED, RUNNING, PAUSED = job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_PAUSED
SUCCEEDED, CANCELLED = job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_CANCELLED


def pause(call, job_id: str) -> None:
    """Pauses a running job and waits until it is held."""
    there = call.get(job_id).last_sequence
    update(call, job_id, paused=True)
    until(call.watch(job_id, there), lambda event: event.job_state == PAUSED)


def paused_while_running(call) -> str:
    """The id of a job that was paused in the middle of its run."""
    job_id = call.create(tiny_spec(**LONG))
    until(call.watch(job_id), lambda event: event.HasField("progress"))
    pause(call, job_id)
    return job_id


def test_a_paused_job_is_cancelled_at_once(call):
    job_id = paused_while_running(call)
    assert cancel(call, job_id).state == CANCELLED
    events = list(call.watch(job_id))
    assert_gapless(events)
    delete(call, job_id)


def test_a_job_paused_before_it_ran_is_cancelled_at_once(idle):
    job_id = idle.create(tiny_spec())
    assert update(idle, job_id, paused=True).state == PAUSED
    assert cancel(idle, job_id).state == CANCELLED
    assert [event.job_state for event in idle.watch(job_id)] == [QUEUED, PAUSED, CANCELLED]


def test_a_job_is_paused_and_resumed_again_and_again(call):
    job_id = paused_while_running(call)
    for _ in range(2):
        there = call.get(job_id).last_sequence
        update(call, job_id, paused=False)
        until(call.watch(job_id, there), lambda event: event.job_state == RUNNING)
        pause(call, job_id)
    done = call.get(job_id).progress.iteration
    update(call, job_id, paused=False, iterations=done + 5)
    events = list(call.watch(job_id))
    assert_gapless(events)
    assert (events[-1].job_state, events[-1].attempt) == (SUCCEEDED, 4)
    assert events[-1].result.iterations == done + 5


def test_a_pause_taken_back_at_once_does_not_stop_later_ones(call):
    job_id = call.create(tiny_spec(**LONG))
    events = call.watch(job_id)
    until(events, lambda event: event.HasField("progress"))
    update(call, job_id, paused=True)
    update(call, job_id, paused=False)
    update(call, job_id, paused=True)
    until(events, lambda event: event.job_state == PAUSED)
    update(call, job_id, paused=False, iterations=1)
    *_, last = events
    assert last.job_state == SUCCEEDED


def test_a_deleted_job_can_be_made_and_run_again(call):
    spec = tiny_spec(seed=5)
    job_id = call.create(spec, "made twice")
    first = list(call.watch(job_id))
    delete(call, job_id)
    assert call.create(spec, "made twice") == job_id
    again = list(call.watch(job_id))
    assert_gapless(again)
    assert again[-1].result.reference == first[-1].result.reference
    assert again[0].time.ToNanoseconds() > first[-1].time.ToNanoseconds()


def test_weights_set_while_a_job_waits_are_applied_when_it_runs(call):
    job_id = paused_while_running(call)
    update(call, job_id, tv_weight=0.0)
    update(call, job_id, paused=False, iterations=1)
    *_, last = call.watch(job_id)
    assert last.result.progress.losses["tv"] == 0
    assert run_tiny(call, tiny_spec()).result.progress.losses["tv"] > 0
