"""`nst stylize`: pictures in, picture out."""

import asyncio
from pathlib import Path

import click

from nst_client.cli.follower import Follower
from nst_client.cli.output import JsonLines, ProgressBar, print_json
from nst_client.cli.output_file import OutputFile, output_options
from nst_client.cli.previews import Previews, previews_option
from nst_client.cli.server import Server, server_options
from nst_client.cli.work import StyleFiles, Work, work_options
from nst_client.client import AsyncClient
from nst_client.formats import Format
from nst_client.images import ImageRef
from nst_client.job import AsyncJob
from nst_client.spec import Style


@click.command()
@output_options(required=False)
@server_options
@work_options
@previews_option
@click.option(
    "--detach",
    is_flag=True,
    help="Make the job, print its id, and leave. Nothing is written: -o only says in what form the result is wanted.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print JSON and nothing else: a line for each event; the job_id with --detach.",
)
def stylize(
    server: Server, work: Work, output: OutputFile | None, previews: Path | None, detach: bool, as_json: bool
) -> None:
    """Paint CONTENT, or a hole in it, in the style of the STYLE pictures.

    Without a server this starts one for the length of the call, if it is installed here. Ctrl-C cancels the job;
    a second Ctrl-C leaves at once. With --detach the job is left to a server that runs already, for `nst jobs`.
    """
    if detach:
        if previews is not None:
            raise click.UsageError("--previews needs somebody who follows the job: leave out --detach")
        server.ask(lambda client: _detach(client, work, output.form if output else "png", as_json))
        return
    if output is None:
        raise click.UsageError("give --output, or --detach")
    _check_kept(output.path, work)
    saved = Previews(previews)
    saved.check_apart(work.inputs())
    with server.or_private() as chosen:
        asyncio.run(_follow(chosen, work, output, saved, as_json))


def _check_kept(output: Path, work: Work) -> None:
    """Raises BadParameter where the result would take the place of a picture that it is made from."""
    if output.exists() and any(output.samefile(file) for file in work.inputs()):
        raise click.BadParameter(f"{output} is one of the pictures to work from", param_hint="--output")


async def _detach(client: AsyncClient, work: Work, form: Format | None, as_json: bool) -> None:
    job = await _make(client, work, form)
    if as_json:
        print_json({"job_id": job.id})
    else:
        click.echo(job.id)


async def _follow(server: Server, work: Work, output: OutputFile, previews: Previews, as_json: bool) -> None:
    async with server.client() as client:
        job = await _make(client, work, output.form)
        with JsonLines() if as_json else ProgressBar() as display:
            follower = Follower(output, previews, display)
            try:
                await follower.follow(job)
            except asyncio.CancelledError:  # Ctrl-C; a second one is a KeyboardInterrupt
                await follower.cancel(job)
                raise
            except Exception:
                await follower.abandon(job)
                raise


async def _make(client: AsyncClient, work: Work, form: Format | None) -> AsyncJob:
    return await client.stylize(
        await _upload(client, work.content),
        [await _upload_style(client, style) for style in work.styles],
        initial=await _upload_given(client, work.initial),
        subject=await _upload_given(client, work.subject),
        hole=await _upload_given(client, work.hole),
        preview_interval=work.preview_interval,
        result_format=form,
        priority=work.priority,
        time_limit=work.time_limit,
        request_id=work.request_id,
        **work.options,
    )


async def _upload_style(client: AsyncClient, files: StyleFiles) -> Style:
    return Style(
        await _upload(client, files.image),
        weight=files.weight,
        scale=files.scale,
        region=await _upload_given(client, files.region),
        source_region=await _upload_given(client, files.source_region),
    )


async def _upload_given(client: AsyncClient, path: Path | None) -> ImageRef | None:
    return None if path is None else await _upload(client, path)


async def _upload(client: AsyncClient, path: Path) -> ImageRef:
    try:
        return await client.upload(path, name=str(path))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
