"""What `nst stylize` is to do, as its command line says it."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from nst_client.cli.kinds import UINT32_MAX, AboveZero, Text
from nst_client.options import OptionValue, build_options, parse_option
from nst_client.spec import LONGEST_SECONDS, Priority

T = TypeVar("T")

_UNSET = "Unset: the server's default, see `nst info`."
_PICTURE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)
_ABOVE_ZERO = AboveZero()


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
    """What a job is made of."""

    content: Path
    styles: list[StyleFiles]
    initial: Path | None
    subject: Path | None
    hole: Path | None
    options: dict[str, Any]
    preview_interval: int | None
    priority: Priority | None
    time_limit: float | None
    request_id: str | None

    def inputs(self) -> Iterator[Path]:
        """Every file that is read."""
        files = [self.content, self.initial, self.subject, self.hole]
        for style in self.styles:
            files += [style.image, style.region, style.source_region]
        yield from (file for file in files if file is not None)


def work_options(command: Callable[..., T]) -> Callable[..., T]:
    """Gives a command the arguments and options that say what a job is made of, as `work`."""

    @click.argument("content", type=_PICTURE)
    @click.argument("styles", type=_PICTURE, nargs=-1, metavar="[STYLE]...")
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
    @click.option(
        "--request-id",
        type=Text(),
        metavar="ID",
        help="The same ID and the same pictures and options give the same job. Unset: always a new one. "
        "Ctrl-C while a job with an ID is being made leaves it.",
    )
    @functools.wraps(command)
    def with_work(
        *args: Any,
        content: Path,
        styles: tuple[Path, ...],
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
        preview_interval: int | None,
        priority: Priority | None,
        time_limit: float | None,
        request_id: str | None,
        **kwargs: Any,
    ) -> T:
        if not styles and hole is None:
            raise click.UsageError("give at least one STYLE, or a --hole to fill")
        named = {
            "size": size,
            "iterations": iterations,
            "strength": strength,
            "seed": seed,
            "faces": "true" if faces else None,
        }
        work = Work(
            content=content,
            styles=_place_styles(styles, weights, scales, regions, source_regions),
            initial=initial,
            subject=subject,
            hole=hole,
            options=_parse_options({name: text for name, text in named.items() if text is not None}, others),
            preview_interval=preview_interval,
            priority=priority,
            time_limit=time_limit,
            request_id=request_id,
        )
        return command(*args, work=work, **kwargs)

    return with_work


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


def _place_styles(
    styles: tuple[Path, ...],
    weights: tuple[str, ...],
    scales: tuple[str, ...],
    regions: tuple[str, ...],
    source_regions: tuple[str, ...],
) -> list[StyleFiles]:
    weight = _by_style("--weight", "N=W", weights, len(styles), _ABOVE_ZERO)
    scale = _by_style("--style-scale", "N=S", scales, len(styles), _ABOVE_ZERO)
    where = _by_style("--region", "N=MASK", regions, len(styles), _PICTURE)
    taken = _by_style("--source-region", "N=MASK", source_regions, len(styles), _PICTURE)
    return [
        StyleFiles(file, weight.get(index), scale.get(index), where.get(index), taken.get(index))
        for index, file in enumerate(styles, start=1)
    ]


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
