"""A model server that is told to stop while an iteration takes longer than it has time for."""

from gateway_support import tiny_spec
from model_server_support import special_server

from nst.v1 import job_pb2
from nst_calls import calls, until


def test_a_job_in_an_endless_iteration_is_handed_back_all_the_same(tmp_path):
    limits = {"NST_HAND_BACK_SECONDS": "0.5", "NST_MAX_LOST_ATTEMPTS": "1"}
    with special_server(tmp_path, "without_end", **limits) as server, calls(server.gateway) as call:
        job_id = call.create(tiny_spec(iterations=40))
        events = call.watch(job_id)
        until(events, lambda event: event.progress.iteration == 1)
        assert server.process.stop() == 0
        (back,) = until(events, lambda event: event.HasField("state"))
    assert back.job_state == job_pb2.JOB_STATE_QUEUED
    assert back.state.reason == "the model server is shutting down"
