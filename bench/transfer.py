"""How fast large pictures go in and out."""

import io
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from echo import Echo, echo_server
from jobs import CONTENT, STYLE
from PIL import Image
from report import Facts, Report
from service import service

from nst_client import Client, Job, Picture, TensorFormat

Argument = TypeVar("Argument")
MB = 1e6
RESULT_SIZE = 1024


def measure(facts: Facts, *, quick: bool) -> list[Report]:
    """Uploads and fetches large pictures, by turns with a bare gRPC stream of as many bytes."""
    rounds = 1 if quick else 5
    report = Report("transfer", "Pictures in and out", facts)
    with service() as served, echo_server() as bare:
        limit = served.client.server_info().limits["max_image_bytes"]
        _upload(report, "float32 tensor", served.client, bare, [_tensor(seed, limit) for seed in range(rounds + 1)])
        _upload(report, "PNG file of 4000 x 3000", served.client, bare, [_png(seed) for seed in range(rounds + 1)])
        jobs = [_large_result(served.client, seed) for seed in range(rounds + 1)]
        _download(report, "float32 tensor", jobs, TensorFormat("float32"), bare)
        _download(report, "PNG file", jobs, None, bare)
    return [report]


def _upload(report: Report, name: str, client: Client, bare: Echo, pictures: Sequence[Picture]) -> None:
    alone, through = [], []
    for picture in pictures:
        alone.append(_seconds(bare.upload, picture.data))
        through.append(_seconds(client.upload, picture))
    _add(report, f"upload, {name}", len(pictures[-1].data), {"bare gRPC": alone, "service": through})


def _download(report: Report, name: str, jobs: Sequence[Job], form: TensorFormat | None, bare: Echo) -> None:
    alone, first, again, size = [], [], [], 0
    for job in jobs:
        first.append(_seconds(job.result_picture, form))
        again.append(_seconds(job.result_picture, form))
        size = len(job.result_picture(form).data)
        alone.append(_seconds(bare.download, size))
    _add(report, f"result, {name}", size, {"bare gRPC": alone, "service": first, "service, again": again})


def _add(report: Report, name: str, size: int, seconds: dict[str, list[float]]) -> None:
    """Adds the rates; the first round only warmed everything up."""
    rates = {way: [size / MB / sample for sample in samples[1:]] for way, samples in seconds.items()}
    report.add(f"{name}, {size / MB:.0f} MB", "MB/s", "", rates)


def _seconds(action: Callable[[Argument], object], argument: Argument) -> float:
    start = time.perf_counter()
    action(argument)
    return time.perf_counter() - start


def _tensor(seed: int, limit: int) -> Picture:
    """Noise of very nearly as many bytes as the server takes."""
    width = 2048
    shape = (limit // (width * 3 * 4) - 1, width, 3)
    return Picture.from_array(np.random.default_rng(seed).random(shape, np.float32))


def _png(seed: int) -> Picture:
    pixels = np.random.default_rng(seed).integers(0, 256, (3000, 4000, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return Picture(file.getvalue())


def _large_result(client: Client, seed: int) -> Job:
    """A job that has ended; it compares the first layer alone, so that a large result is cheap to make."""
    job = client.stylize(
        CONTENT,
        STYLE,
        size=RESULT_SIZE,
        iterations=1,
        preview_interval=0,
        scales=1,
        init="noise",
        seed=seed,
        content_layers={"relu1_1": 1.0},
        style_layers={"relu1_1": 1.0},
    )
    job.wait()
    return job
