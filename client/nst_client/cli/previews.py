"""The folder that previews are saved to."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Self

import click

from nst_client.events import AnyEvent, PreviewEvent

previews_option = click.option(
    "--previews",
    type=click.Path(file_okay=False, path_type=Path),
    help="Save previews here, named after their iteration.",
)


class PreviewFolder:
    """Saves the previews of a job, named after their iteration."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unsaved = 0

    @classmethod
    def made(cls, path: Path) -> Self:
        """The folder, made unless it is there. Raises BadParameter where files cannot be written in it."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=path).close()
        except OSError as error:
            raise click.BadParameter(f"{path}: cannot be written: {error.strerror}", param_hint="--previews") from None
        return cls(path)

    @contextmanager
    def told(self) -> Iterator[None]:
        """At its end, says how many could not be saved."""
        try:
            yield
        finally:
            if self._unsaved:
                click.echo(f"Previews not saved, as their pictures did not come in time: {self._unsaved}", err=True)

    def save(self, event: AnyEvent) -> None:
        """Saves the picture of an event that is a preview."""
        if not isinstance(event, PreviewEvent):
            return
        if event.picture is None:
            self._unsaved += 1
        else:
            (self._path / f"{event.iteration:04d}.png").write_bytes(event.picture.data)

    def check_apart(self, files: Iterator[Path]) -> None:
        """Raises BadParameter where a preview could take the place of one of these."""
        for file in files:
            if re.fullmatch(r"[0-9]{4,}\.png", file.name) and self._path.samefile(file.parent):
                raise click.BadParameter(
                    f"{file} could be written over: choose another folder", param_hint="--previews"
                )
