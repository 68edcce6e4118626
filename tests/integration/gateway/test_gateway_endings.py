"""A result says why its job ended, and with how many iterations."""

import pytest
from gateway_support import run_tiny, tiny_spec

from nst.v1 import job_pb2, options_pb2

ENDINGS = {
    "its iterations": ({}, 3, job_pb2.STOP_REASON_ITERATIONS),
    "no improvement": (
        {"min_improvement": 1.0, "window": 2, "optimizer": options_pb2.OPTIMIZER_ADAM, "learning_rate": 1.0},
        2,
        job_pb2.STOP_REASON_IMPROVEMENT,
    ),
    "the content's threshold": (
        {"content_threshold": 0.0, "style_statistic": options_pb2.STYLE_STATISTIC_GRAM},
        1,
        job_pb2.STOP_REASON_THRESHOLD,
    ),
}


@pytest.mark.parametrize("case", ENDINGS)
def test_a_result_tells_its_end(call, case):
    options, iterations, reason = ENDINGS[case]
    result = run_tiny(call, tiny_spec(**options)).result
    assert result.stop_reason == reason
    assert result.iterations == iterations
    assert (result.progress.iteration, result.progress.iterations) == (iterations, iterations)
    assert result.progress.seconds_left == 0
