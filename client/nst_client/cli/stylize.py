"""`nst stylize`: pictures in, picture out."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, get_args

import click

from nst_client.cli.follower import Follower
from nst_client.cli.kinds import UINT32_MAX, AboveZero, Text
from nst_client.cli.output import JsonLines, ProgressBar
from nst_client.cli.output_file import OutputFile, output_options
from nst_client.cli.server import Server, server_options
from nst_client.client import AsyncClient
from nst_client.images import ImageRef
from nst_client.options import OptionValue, build_options, parse_option
from nst_client.spec import LONGEST_SECONDS, Priority, Style

_UNSET = "Unset: the server's default, see `nst info`."
_PICTURE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)
_ABOVE_ZERO = AboveZero()
_FOLDER = click.Path(file_okay=False, path_type=Path)


@dataclass(frozen=True)
class StyleFiles:
    """The files of one style, its picture and its masks, its weight and its scale."""

    image: Path
    weight: float | None
    scale: float | None
    region: Path | None
    source_region: Path | None


@dataclass(frozen=True)
class Work:
    """What is to be done, as the command line says it."""

    content: Path
    styles: list[StyleFiles]
    initial: Path | None
    subject: Path | None
    hole: Path | None
    output: OutputFile
    options: dict[str, Any]
    preview_interval: int | None
    previews: Path | None
    priority: Priority | None
    time_limit: float | None
    as_json: bool

    def inputs(self) -> Iterator[Path]:
        """Every file that is read."""
        files = [self.content, self.initial, self.subject, self.hole]
        for style in self.styles:
            files += [style.image, style.region, style.source_region]
        yield from (file for file in files if file is not None)


@click.command()
@click.argument("content", type=_PICTURE)
@click.argument("styles", type=_PICTURE, nargs=-1, metavar="[STYLE]...")
@output_options
@server_options
@click.option("--size", metavar="N", help=f"Long side of the result in pixels. {_UNSET}")
@click.option("--iterations", metavar="N", help=f"Iterations over all scales. {_UNSET}")
@click.option("--strength", metavar="S", help=f"How much of the style to take, 0 to 1. {_UNSET}")
@click.option("--seed", metavar="N", help=f"Seed of the noise start. {_UNSET}")
@click.option(
    "--option",
    "others",
    multiple=True,
    type=Text(),
    metavar="NAME=VALUE",
    help="Any other option, such as optimizer=adam or content_layers=relu4_2=5,relu3_1=1; `nst info` lists them.",
)
@click.option(
    "--weight",
    "weights",
    multiple=True,
    metavar="N=W",
    help="How much the Nth STYLE counts beside the others of its region. Unset: 1.",
)
@click.option(
    "--style-scale",
    "scales",
    multiple=True,
    metavar="N=S",
    help="The size at which the Nth STYLE is looked at, relative to the result's: strokes grow with it. Unset: 1.",
)
@click.option(
    "--region",
    "regions",
    multiple=True,
    metavar="N=MASK",
    help="Where on the content the Nth STYLE goes: a picture, white there and black elsewhere. Unset: everywhere.",
)
@click.option(
    "--source-region",
    "source_regions",
    multiple=True,
    metavar="N=MASK",
    help="What part of the Nth STYLE is taken, likewise. Unset: all of it.",
)
@click.option("--init-image", "initial", type=_PICTURE, help="Start from this picture.")
@click.option("--subject", type=_PICTURE, help="A mask of what to keep recognisable: white where it is.")
@click.option(
    "--hole",
    type=_PICTURE,
    help="A mask of what alone may change: white there. Without STYLE it is filled like the rest.",
)
@click.option("--faces", is_flag=True, help="Find faces in CONTENT and keep them recognisable.")
@click.option("--previews", type=_FOLDER, help="Save previews here, named after their iteration.")
@click.option(
    "--preview-interval",
    type=click.IntRange(min=0, max=UINT32_MAX),
    metavar="N",
    help=f"Iterations between previews; 0: none. {_UNSET}",
)
@click.option(
    "--priority",
    type=click.Choice(get_args(Priority)),
    help="Whether somebody waits for it: interactive jobs get eight times the device time of batch ones. "
    "Unset: interactive.",
)
@click.option(
    "--time-limit",
    type=AboveZero(LONGEST_SECONDS),
    metavar="SECONDS",
    help="When so much time has passed, save the best picture so far and exit with 1. Unset: wait for ever.",
)
@click.option("--json", "as_json", is_flag=True, help="Print each event as a line of JSON, and nothing else.")
def stylize(
    server: Server,
    content: Path,
    styles: tuple[Path, ...],
    output: OutputFile,
    size: str | None,
    iterations: str | None,
    strength: str | None,
    seed: str | None,
    others: tuple[str, ...],
    weights: tuple[str, ...],
    scales: tuple[str, ...],
    regions: tuple[str, ...],
    source_regions: tuple[str, ...],
    initial: Path | None,
    subject: Path | None,
    hole: Path | None,
    faces: bool,
    previews: Path | None,
    preview_interval: int | None,
    priority: Priority | None,
    time_limit: float | None,
    as_json: bool,
) -> None:
    """Paint CONTENT, or a hole in it, in the style of the STYLE pictures.

    Without a server this starts one for the length of the call, if it is installed here. Ctrl-C cancels the job;
    a second Ctrl-C leaves at once.
    """
    if not styles and hole is None:
        raise click.UsageError("give at least one STYLE, or a --hole to fill")
    named = {
        "size": size,
        "iterations": iterations,
        "strength": strength,
        "seed": seed,
        "faces": "true" if faces else None,
    }
    options = _parse_options({name: text for name, text in named.items() if text is not None}, others)
    weight = _by_style("--weight", "N=W", weights, len(styles), _ABOVE_ZERO)
    scale = _by_style("--style-scale", "N=S", scales, len(styles), _ABOVE_ZERO)
    where = _by_style("--region", "N=MASK", regions, len(styles), _PICTURE)
    taken = _by_style("--source-region", "N=MASK", source_regions, len(styles), _PICTURE)
    placed = [
        StyleFiles(file, weight.get(index), scale.get(index), where.get(index), taken.get(index))
        for index, file in enumerate(styles, start=1)
    ]
    work = Work(
        content=content,
        styles=placed,
        initial=initial,
        subject=subject,
        hole=hole,
        output=output,
        options=options,
        preview_interval=preview_interval,
        previews=previews,
        priority=priority,
        time_limit=time_limit,
        as_json=as_json,
    )
    _check_kept(work)
    if previews is not None:
        _make_folder(previews)
    with server.or_private() as chosen:
        asyncio.run(_stylize(chosen, work))


def _check_kept(work: Work) -> None:
    """Raises BadParameter where the result would take the place of a picture that it is made from."""
    path = work.output.path
    if path.exists() and any(path.samefile(file) for file in work.inputs()):
        raise click.BadParameter(f"{path} is one of the pictures to work from", param_hint="--output")


def _make_folder(previews: Path) -> None:
    """Make the folder unless it is there, and find out whether files can be written in it."""
    try:
        previews.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=previews).close()
    except OSError as error:
        raise click.BadParameter(f"{previews}: cannot be written: {error.strerror}", param_hint="--previews") from None


def _parse_options(named: dict[str, str], others: tuple[str, ...]) -> dict[str, OptionValue]:
    texts = dict(named)
    for other in others:
        name, equals, text = other.partition("=")
        if not equals:
            raise click.BadParameter(f"write NAME=VALUE, not {other!r}", param_hint="--option")
        if name in texts:
            raise click.BadParameter(f"{name} is given twice", param_hint="--option")
        texts[name] = text
    try:
        options = {name: parse_option(name, text) for name, text in texts.items()}
        build_options(options)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    return options


def _by_style(
    hint: str, form: str, texts: tuple[str, ...], styles: int, kind: "click.ParamType[Any]"
) -> dict[int, Any]:
    """What is given for some styles, by their position from 1."""
    found: dict[int, Any] = {}
    for text in texts:
        number, equals, value = text.partition("=")
        if not (equals and number.isdecimal() and 1 <= int(number) <= styles):
            raise click.BadParameter(f"write {form} with N from 1 to {styles}, not {text!r}", param_hint=hint)
        if int(number) in found:
            raise click.BadParameter(f"style {number} is given twice", param_hint=hint)
        try:
            found[int(number)] = kind.convert(value, None, None)
        except click.BadParameter as error:
            error.param_hint = hint
            raise
    return found


async def _stylize(server: Server, work: Work) -> None:
    async with server.client() as client:
        content = await _upload(client, work.content)
        styles = [await _upload_style(client, style) for style in work.styles]
        initial = await _upload(client, work.initial) if work.initial else None
        subject = await _upload(client, work.subject) if work.subject else None
        hole = await _upload(client, work.hole) if work.hole else None
        with JsonLines() if work.as_json else ProgressBar() as display:
            job = await client.stylize(
                content,
                styles,
                initial=initial,
                subject=subject,
                hole=hole,
                preview_interval=work.preview_interval,
                result_format=work.output.form,
                priority=work.priority,
                time_limit=work.time_limit,
                **work.options,
            )
            follower = Follower(work.output, work.previews, display)
            try:
                await follower.follow(job)
            except asyncio.CancelledError:  # Ctrl-C; a second one is a KeyboardInterrupt
                await follower.cancel(job)
                raise
            except Exception:
                await follower.abandon(job)
                raise


async def _upload_style(client: AsyncClient, files: StyleFiles) -> Style:
    return Style(
        await _upload(client, files.image),
        weight=files.weight,
        scale=files.scale,
        region=await _upload(client, files.region) if files.region else None,
        source_region=await _upload(client, files.source_region) if files.source_region else None,
    )


async def _upload(client: AsyncClient, path: Path) -> ImageRef:
    try:
        return await client.upload(path, name=str(path))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
