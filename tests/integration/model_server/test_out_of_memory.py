"""A job that runs out of memory is tried again alone, for which another one makes way."""

from gateway_support import tiny_spec
from model_server_support import special_server

from nst.v1 import job_pb2
from nst_calls import assert_gapless, calls


def test_a_job_out_of_memory_is_tried_again_alone_and_both_succeed(tmp_path):
    with special_server(tmp_path, "out_of_memory_once") as server, calls(server.gateway) as call:
        histories = [list(call.watch(job_id)) for job_id in [call.create(tiny_spec(iterations=40)) for _ in range(2)]]
    for history in histories:
        assert_gapless(history)
        assert history[-1].job_state == job_pb2.JOB_STATE_SUCCEEDED
        assert history[-1].result.iterations == 40
    reasons = {event.state.reason for history in histories for event in history if event.HasField("state")}
    assert "ran out of memory; is tried again alone and in smaller tiles" in reasons
