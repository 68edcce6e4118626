"""A job in words: as a row among others, and by itself."""

import dataclasses
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from rich.table import Table

from nst_client.cli.output import option_text, progress_text
from nst_client.events import Failure, JobState, JobStatus, Progress
from nst_client.formats import EncodedFormat, TensorFormat
from nst_client.images import ImageRef
from nst_client.spec import Style

JOB_COLUMNS = ("job", "state", "iterations", "made", "tenant")


def job_row(job: JobStatus) -> tuple[str, ...]:
    """What a list says of the job, in the order of `JOB_COLUMNS`."""
    done = f"{job.progress.iteration}/{job.progress.iterations}" if job.progress else ""
    return job.job_id, _text(job.state), done, _text(job.create_time), job.tenant


def job_table(job: JobStatus) -> Table:
    """All that is known of the job; what is not set is left out."""
    table = Table(box=None, show_header=False)
    for row in _rows(job):
        table.add_row(*row)
    return table


def _rows(job: JobStatus) -> Iterator[tuple[str, str]]:
    for field in dataclasses.fields(job):
        value = getattr(job, field.name)
        match field.name:
            case "styles":
                yield from ((f"style {number}", _style_text(style)) for number, style in enumerate(value, start=1))
            case "options" | "changes":
                kind = field.name.removesuffix("s")
                yield from ((f"{kind} {name}", option_text(setting)) for name, setting in value.items())
            case "time_limit" if value is not None:
                yield field.name, f"{value:g} s"
            case name if value not in (None, ""):
                yield name, _text(value)


def _text(value: Any) -> str:
    match value:
        case JobState():
            return value.name.lower()
        case datetime():
            return f"{value:%Y-%m-%d %H:%M:%S %Z}"
        case ImageRef():
            return value.sha256
        case EncodedFormat():
            return value.codec if value.quality is None else f"{value.codec} {value.quality}"
        case TensorFormat():
            return f"{value.dtype} {value.layout}"
        case Progress():
            return f"{value.iteration}/{value.iterations}  {progress_text(value)}"
        case Failure():
            return _failure_text(value)
    return str(value)


def _style_text(style: Style) -> str:
    numbers = {"weight": style.weight, "scale": style.scale}
    masks = {"region": style.region, "source region": style.source_region}
    parts = [
        _text(style.image),
        *(f"{name} {number:g}" for name, number in numbers.items() if number is not None),
        *(f"{name} {_text(mask)}" for name, mask in masks.items() if mask is not None),
    ]
    return ", ".join(parts)


def _failure_text(failure: Failure) -> str:
    text = f"{failure.reason or failure.code.name}: {failure.message}"
    partial = failure.partial
    if partial:
        text += f"; the best picture so far, of {partial.iterations} iterations, is {_text(partial.reference)}"
    return text
