"""Steering a job over its Stylize stream."""

import grpc
import pytest
from gateway_support import LONG, assert_has_field, cancel, refusal_of, tiny_spec
from stylize_stream import is_running, states, stylize

from nst.v1 import job_pb2
from nst.v1.style_transfer_service_pb2 import StylizeCancel, StylizeRequest
from nst_calls import assert_gapless, until

QUEUED, RUNNING, PAUSED = job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_PAUSED
SUCCEEDED, CANCELLED = job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_CANCELLED
# Fewer iterations than are done leave a job one more, with which it succeeds.
ENOUGH = job_pb2.JobUpdate(iterations=1)


def test_a_new_strength_is_applied_to_the_running_job(call):
    with stylize(call) as stream:
        stream.start(tiny_spec(**LONG, strength=0.0))
        events = iter(stream)
        before = until(events, is_running)
        assert before[-1].progress.losses["style"] == 0
        stream.send(update=job_pb2.JobUpdate(strength=1.0))
        after = until(events, lambda event: event.progress.losses.get("style", 0) > 0)
        assert after[-1].progress.losses["content"] == 0
        stream.send(update=ENOUGH)
        rest = list(events)
    assert_gapless([*before, *after, *rest])
    assert rest[-1].job_state == SUCCEEDED


def test_a_new_weight_and_new_shares_are_applied_to_the_running_job(call):
    with stylize(call) as stream:
        stream.start(tiny_spec(**LONG, styles=2, tv_weight=1.0))
        events = iter(stream)
        assert until(events, is_running)[-1].progress.losses["tv"] > 0
        stream.send(update=job_pb2.JobUpdate(style_shares=[0.0, 1.0], tv_weight=0.0))
        until(events, lambda event: event.HasField("progress") and event.progress.losses.get("tv", 0) == 0)
        stream.send(update=ENOUGH)
        *_, last = events
    assert last.job_state == SUCCEEDED


def test_a_job_is_paused_and_goes_on_where_it_was(call):
    with stylize(call) as stream:
        stream.start(tiny_spec(**LONG))
        events = iter(stream)
        before = until(events, is_running)
        stream.send(update=job_pb2.JobUpdate(paused=True))
        before += until(events, lambda event: event.job_state == PAUSED)
        done = max(event.progress.iteration for event in before)
        stream.send(update=job_pb2.JobUpdate(paused=False, iterations=done + 5))
        after = list(events)
    assert_gapless([*before, *after])
    assert states(before) == [QUEUED, RUNNING, PAUSED]
    # A model server that takes the job at once says so before the gateway says that it waits.
    assert states(after) in ([QUEUED, RUNNING], [RUNNING])
    restart = next(event.state for event in after if event.state.state == RUNNING)
    assert restart.from_iteration >= done
    assert after[-1].result.iterations == done + 5


def test_a_cancel_message_ends_the_job_and_the_stream(call):
    with stylize(call) as stream:
        stream.start(tiny_spec(**LONG), detach=True)
        events = iter(stream)
        seen = until(events, is_running)
        stream.send(cancel=StylizeCancel())
        seen += events
    assert_gapless(seen)
    assert seen[-1].state.state == CANCELLED


BAD_UPDATES = {
    "strength above 1": ({"update": {"strength": 1.5}}, "update.strength", "from 0 to 1"),
    "a raw weight": ({"update": {"style_weight": 1.0}}, "update.style_weight", "change strength"),
    "too many shares": ({"update": {"style_shares": [1, 2, 3]}}, "update.style_shares", "1, not 3"),
    "another start": ({"start": {}}, "start", "only update and cancel"),
    "a late chunk": ({"chunk": {"name": "x"}}, "chunk", "only update and cancel"),
    "nothing": ({}, "message", "only update and cancel"),
}


@pytest.mark.parametrize("case", BAD_UPDATES)
def test_a_bad_update_aborts_the_stream_and_its_job(call, case):
    message, field, words = BAD_UPDATES[case]
    with stylize(call) as stream:
        stream.start(tiny_spec(**LONG))
        job_id = until(iter(stream), is_running)[-1].job_id
        stream.send(**message)
        refused = refusal_of(lambda: stream)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(refused.fields) == [field]
    assert_has_field(StylizeRequest.DESCRIPTOR, field)
    assert words in refused.message
    *_, last = call.watch(job_id)
    assert last.job_state == CANCELLED


def test_a_bad_update_does_not_touch_a_detached_job(call):
    with stylize(call) as stream:
        stream.start(tiny_spec(**LONG), detach=True)
        there = until(iter(stream), is_running)[-1]
        stream.send(update=job_pb2.JobUpdate(strength=2.0))
        assert refusal_of(lambda: stream).code is grpc.StatusCode.INVALID_ARGUMENT
    seen = there.progress.iteration
    until(call.watch(there.job_id, there.sequence), lambda event: event.progress.iteration > seen + 10)
    cancel(call, there.job_id)
