"""The file that a result is saved to."""

import errno
import functools
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click

from nst_client.errors import JobFailed
from nst_client.formats import Codec, EncodedFormat, Format
from nst_client.images import Picture
from nst_client.job import AsyncJob

T = TypeVar("T")

_CODECS: dict[str, Codec] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


@dataclass(frozen=True)
class OutputFile:
    """A path, and the form that its suffix and the command line ask for."""

    path: Path
    form: EncodedFormat

    def save(self, data: bytes) -> None:
        """Write the file, whole or not at all."""
        with self._part() as (part, target):
            part.write_bytes(data)
            part.replace(target)

    def check(self) -> None:
        """Find out whether the file can be written, and leave it as it is. Raises OSError."""
        with self._part() as (part, target):
            part.touch()
            with suppress(FileNotFoundError):
                if not stat.S_ISREG(target.stat().st_mode):
                    raise OSError(errno.EINVAL, "it is there, and no file")

    @contextmanager
    def _part(self) -> Iterator[tuple[Path, Path]]:
        """A file beside the one that is meant, and that one: where a link leads to, so that the link stays one."""
        target = Path(os.path.realpath(self.path))
        # Not named after the target, whose name may be as long as a name can be.
        part = target.with_name(f".{uuid.uuid4().hex}.part")
        try:
            yield part, target
        finally:
            part.unlink(missing_ok=True)


async def save_result(job: AsyncJob, output: OutputFile, form: Format | None = None) -> Picture:
    """Save the final picture of a job, once it has ended, and return it.

    Raises:
        JobFailed, JobCancelled: there is none. The best picture so far, if there is one, is saved.
    """
    try:
        picture = await job.result_picture(form)
    except JobFailed as error:
        if error.partial is not None:
            output.save(error.partial.data)
            click.echo(f"Out of time: {output.path} is the best picture so far.", err=True)
        raise
    output.save(picture.data)
    return picture


class OutputFileType(click.ParamType[OutputFile]):
    """Checks the name before any work is done for it."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> OutputFile:
        """The file of this name. Fails for a suffix that is no codec's, and where no such file can be written."""
        path = Path(value)
        codec = _CODECS.get(path.suffix.lower())
        if codec is None:
            self.fail(f"{value}: the suffix must be one of {', '.join(_CODECS)}", param, ctx)
        output = OutputFile(path, EncodedFormat(codec))
        try:
            if not path.parent.is_dir():
                self.fail(f"{value}: the folder {path.parent} does not exist", param, ctx)
            output.check()
        except OSError as error:
            self.fail(f"{value}: cannot be written: {error.strerror}", param, ctx)
        return output


def output_options(*, required: bool) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Gives a command the options that say where and how a picture is saved, as `output`; None if that is allowed."""

    def decorate(command: Callable[..., T]) -> Callable[..., T]:
        @click.option("-o", "--output", required=required, type=OutputFileType(), help="A .png, .jpg or .webp file.")
        @click.option(
            "--quality",
            type=click.IntRange(1, 100),
            metavar="Q",
            help="Of a .jpg or .webp file, 1 to 100. Unset: the server's default.",
        )
        @functools.wraps(command)
        def with_output(*args: Any, output: OutputFile | None, quality: int | None, **kwargs: Any) -> T:
            return command(*args, output=output if quality is None else _at(quality, output), **kwargs)

        return with_output

    return decorate


def _at(quality: int, output: OutputFile | None) -> OutputFile:
    if output is None:
        raise click.BadParameter("is that of an --output, which is not given", param_hint="--quality")
    if output.form.codec == "png":
        raise click.BadParameter("a .png file loses nothing and has none", param_hint="--quality")
    return replace(output, form=replace(output.form, quality=quality))
