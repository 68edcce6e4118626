"""Jobs of one shape on a real server that turns them together."""

from pathlib import Path

import numpy as np

from nst_calls import SHALLOW, metric
from nst_client import Client, Job
from nst_processes import running_server

STRENGTHS = (0.2, 0.5, 0.8)
OPTIONS = {"size": 32, "iterations": 40, "scales": 1, **SHALLOW}


def pixels(job: Job) -> np.ndarray:
    return np.asarray(job.result())


def test_jobs_that_are_turned_together_end_as_each_does_alone(
    tmp_path: Path, content_path: Path, style_path: Path
) -> None:
    together = {"NST_MAX_BATCH": "4", "NST_MAX_RUNNING_JOBS": "4"}
    with running_server(tmp_path / "data", **together) as server, Client(server.address) as client:
        counted = server.status["model_metrics_address"]

        def batches(at_most: int) -> float:
            return metric(counted, "nst_batch_size_bucket", le=f"{at_most}.0")

        content, style = client.upload(content_path), client.upload(style_path)
        jobs = [client.stylize(content, style, strength=strength, **OPTIONS) for strength in STRENGTHS]
        pictures = [pixels(job) for job in jobs]
        assert batches(4) > batches(2), "three at once"
        for strength, picture in zip(STRENGTHS, pictures, strict=True):
            alone = pixels(client.stylize(content, style, strength=strength, **OPTIONS))
            assert np.array_equal(alone, picture)
