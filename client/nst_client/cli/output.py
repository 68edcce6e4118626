"""How commands show what they are told: one JSON object a line, or words and a progress bar."""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Self

import click
import grpc
from rich.console import Console, ConsoleDimensions
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column, Table

from nst.v1 import job_pb2
from nst_client.events import AnyEvent, ErrorEvent, JobState, PreviewEvent, ProgressEvent, ResultEvent, StateEvent
from nst_client.events import Progress as JobProgress
from nst_client.images import Picture
from nst_client.options import OptionValue

_KINDS: Mapping[type, str] = {
    StateEvent: "state",
    ProgressEvent: "progress",
    PreviewEvent: "preview",
    ResultEvent: "result",
    ErrorEvent: "error",
}
_ENDS = {
    "improvement": "; the loss stood still",
    "threshold": "; the content loss met its threshold",
    "divergence": "; every further step diverged, and this is the best picture before",
}
_ANY_WIDTH = 1_000_000


def plain(value: Any) -> Any:
    """A value of this library as JSON holds it; fields keep their names, enums those of the protocol."""
    match value:
        case Picture():
            return {"bytes": len(value.data), "sha256": hashlib.sha256(value.data).hexdigest()}
        case JobState():
            return job_pb2.JobState.Name(job_pb2.JobState.ValueType(value))
        case grpc.StatusCode():
            return value.value[0]
        case datetime():
            return value.isoformat().replace("+00:00", "Z")
        case float() if not math.isfinite(value):
            return None  # JSON has no NaN and no infinity
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case _ if dataclasses.is_dataclass(value):
            return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value


def print_json(value: Any) -> None:
    """One line on stdout, at once."""
    click.echo(json.dumps(plain(value), allow_nan=False))


def print_table(table: Table, *, fold: bool = False) -> None:
    """A table on stdout, as wide as it needs: an id that is cut is of no use, one that a terminal wraps is.

    With `fold` it takes a terminal's width instead, where stdout is one. What is in it is no markup, whatever it
    looks like.
    """
    console = Console(color_system=None, highlight=False, markup=False, emoji=False)
    if not (fold and console.file.isatty()):
        console.size = ConsoleDimensions(_ANY_WIDTH, height=1)
    with console.capture() as capture:
        console.print(table)
    # Without the blanks behind a short row, which would fill a terminal's lines as far as the longest row goes.
    click.echo(re.sub(" +$", "", capture.get(), flags=re.MULTILINE), nl=False)


def event_fields(event: AnyEvent) -> dict[str, Any]:
    """An event for JSON: `sequence`, `event` (its kind), `job_id`, then its own fields.

    A picture is told by the length (`bytes`) and `sha256` of the bytes that were delivered.
    """
    fields = plain(event)
    if "picture" in fields:
        fields |= fields.pop("picture") or {"bytes": None, "sha256": None}
    return {"sequence": event.sequence, "event": _KINDS[type(event)], **fields}


class JsonLines:
    """Shows events as JSON on stdout."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, event: AnyEvent) -> None:
        """Print one line."""
        print_json(event_fields(event))


class ProgressBar:
    """Shows events on stderr: what happens in words, and a live bar if that is a terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bar = Progress(
            MofNCompleteColumn(),
            BarColumn(bar_width=10),
            # The text takes what is left, and is cut rather than the count.
            TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True)),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
            expand=True,
        )
        self._task = self._bar.add_task("waiting", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, event: AnyEvent) -> None:
        """Move the bar, or say what happened."""
        match event:
            case ProgressEvent():
                description = progress_text(event)
                self._bar.update(self._task, completed=event.iteration, total=event.iterations, description=description)
            case StateEvent():
                self._console.print(_state_text(event), markup=False)
            case ResultEvent():
                size = f"{event.width}x{event.height}"
                end = _ENDS.get(event.stop_reason or "", "")
                undone = _undone_text(event.progress.undone)
                self._console.print(
                    f"result: {size}, {event.iterations} iterations{undone} in {event.run_seconds:.1f} s{end}"
                )


Display = JsonLines | ProgressBar


def progress_text(progress: JobProgress) -> str:
    """How fast it goes, at what size, and what the losses are."""
    pace = f"{progress.iterations_per_second:.1f} it/s"
    if math.isfinite(progress.seconds_left):
        minutes, seconds = divmod(round(progress.seconds_left), 60)
        pace += f" {minutes}:{seconds:02d} left"
    scale = f"scale {progress.scale}/{progress.scales} {progress.width}x{progress.height}"
    # The parts come last: a narrow terminal cuts them off.
    parts = " ".join(f"{name} {loss:.2g}" for name, loss in sorted(progress.losses.items()))
    return f"{pace}  {scale}{_undone_text(progress.undone)}  loss {progress.total_loss:.3g}: {parts}"


def option_text(value: OptionValue | None) -> str:
    """The value of an option as `--option` takes it; nothing for None."""
    if isinstance(value, Mapping):
        return ", ".join(f"{tap}={weight:g}" for tap, weight in sorted(value.items()))
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def _undone_text(undone: int) -> str:
    return f" ({undone} undone)" if undone else ""


def _state_text(event: StateEvent) -> str:
    text = f"{event.job_id} {event.state.name.lower()}"
    if event.from_iteration:
        text += f" from iteration {event.from_iteration}"
    return f"{text}: {event.reason}" if event.reason else text
