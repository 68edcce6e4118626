"""The folder that previews are saved to."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

import click

from nst_client.events import AnyEvent, PreviewEvent

previews_option = click.option(
    "--previews",
    type=click.Path(file_okay=False, path_type=Path),
    help="Save previews here, named after their iteration.",
)


class Previews:
    """Saves the previews of a job in a folder, named after their iteration; without one it does nothing.

    The folder is made unless it is there. Raises BadParameter where files cannot be written in it.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._unsaved = 0
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                TemporaryFile(dir=folder).close()
            except OSError as error:
                reason = f"{folder}: cannot be written: {error.strerror}"
                raise click.BadParameter(reason, param_hint="--previews") from None

    @property
    def wanted(self) -> bool:
        """Whether there is a folder."""
        return self._folder is not None

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
        if self._folder is None or not isinstance(event, PreviewEvent):
            return
        if event.picture is None:
            self._unsaved += 1
        else:
            (self._folder / f"{event.iteration:04d}.png").write_bytes(event.picture.data)

    def check_apart(self, files: Iterator[Path]) -> None:
        """Raises BadParameter where a preview could take the place of one of these."""
        if self._folder is None:
            return
        for file in files:
            if re.fullmatch(r"[0-9]{4,}\.png", file.name) and self._folder.samefile(file.parent):
                raise click.BadParameter(
                    f"{file} could be written over: choose another folder", param_hint="--previews"
                )
