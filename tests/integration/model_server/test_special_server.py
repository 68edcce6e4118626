"""A model server that is told when it is warm, runs out of memory once, and at last hangs in an iteration.

In this order: it lives through all of it.
"""

from collections.abc import Iterator
from contextlib import suppress

import pytest
from gateway_support import get, tiny_spec
from model_server_support import Special, special_server
from special_server import ENDLESS

from nst.v1 import job_pb2
from nst_calls import Calls, assert_gapless, calls, until


@pytest.fixture(scope="module")
def special(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Special]:
    limits = {"NST_HAND_BACK_SECONDS": "0.5", "NST_MAX_LOST_ATTEMPTS": "1"}
    with special_server(tmp_path_factory.mktemp("special"), **limits) as special:
        yield special


def answers_until(wanted: int, special: Special) -> set[int]:
    """What /readyz answers until it is what is wanted."""
    seen: set[int] = set()

    def asked() -> bool:
        with suppress(OSError):
            seen.add(get(special.status, "/readyz")[0])
        return wanted in seen

    special.process.wait_until(asked, f"{wanted} from /readyz")
    return seen


def warm_up(special: Special) -> None:
    """Tells it, also again."""
    assert special.process.popen.stdin is not None
    special.process.popen.stdin.write(b"\n")
    special.process.popen.stdin.flush()


@pytest.fixture(scope="module")
def call(special: Special) -> Iterator[Calls]:
    """Calls to its gateway, while it is warm."""
    warm_up(special)
    with calls(special.gateway) as call:
        yield call


def test_it_is_ready_when_it_is_warm_and_not_before(special):
    assert answers_until(503, special) == {503}
    assert get(special.status, "/healthz")[0] == 200
    warm_up(special)
    assert answers_until(200, special) <= {503, 200}


def test_a_job_out_of_memory_is_tried_again_alone_and_both_succeed(call):
    histories = [list(call.watch(job_id)) for job_id in [call.create(tiny_spec(iterations=40)) for _ in range(2)]]
    for history in histories:
        assert_gapless(history)
        assert history[-1].job_state == job_pb2.JOB_STATE_SUCCEEDED
        assert history[-1].result.iterations == 40
    reasons = {event.state.reason for history in histories for event in history if event.HasField("state")}
    assert "ran out of memory; is tried again alone and in smaller tiles" in reasons


def test_a_job_in_an_endless_iteration_is_handed_back_all_the_same(special, call):
    """When the server is told to stop while an iteration takes longer than it has time for."""
    events = call.watch(call.create(tiny_spec(iterations=ENDLESS)))
    until(events, lambda event: event.progress.iteration == 1)
    assert special.process.stop() == 0
    (back,) = until(events, lambda event: event.HasField("state"))
    assert back.job_state == job_pb2.JOB_STATE_QUEUED
    assert back.state.reason == "the model server is shutting down"
