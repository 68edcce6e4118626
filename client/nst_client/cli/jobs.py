"""`nst jobs`: look at, follow, steer and end jobs that exist."""

from pathlib import Path
from typing import Any

import click
from rich.table import Table

from nst_client.cli.job_table import JOB_COLUMNS, job_row, job_table
from nst_client.cli.kinds import UINT32_MAX, UINT64_MAX, Text
from nst_client.cli.output import JsonLines, ProgressBar, print_json, print_table
from nst_client.cli.output_file import OutputFile, output_options, save_result
from nst_client.cli.previews import Previews, previews_option
from nst_client.cli.server import Server, server_options
from nst_client.client import AsyncClient
from nst_client.events import STATES, JobStatus, StateName
from nst_client.options import parse_option

_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_job_argument = click.argument("job_id", metavar="JOB", type=Text())
_LAYERS = "Repeated for each tap that counts; others of the job's then weigh 0."
_LAYER_OPTIONS = frozenset({"content_layers", "style_layers"})


@click.group()
def jobs() -> None:
    """Look at, follow, steer and end jobs."""


@jobs.command("list")
@server_options
@click.option("--state", "states", multiple=True, type=click.Choice(list(STATES)), help="Only jobs in this state.")
@_json_option
def list_jobs(server: Server, states: tuple[StateName, ...], as_json: bool) -> None:
    """List jobs, newest first; with --json one a line."""
    table = Table(*JOB_COLUMNS, box=None)

    async def listing(client: AsyncClient) -> None:
        async for job in client.jobs(states):
            if as_json:
                print_json(job)
            else:
                table.add_row(*job_row(job))

    server.ask(listing)
    if not as_json:
        print_table(table)


@jobs.command()
@server_options
@_job_argument
@_json_option
def get(server: Server, job_id: str, as_json: bool) -> None:
    """Show a job as it stands."""
    _print_job(server.ask(lambda client: client.job(job_id).status()), as_json)


@jobs.command()
@server_options
@_job_argument
@click.option(
    "--after", type=click.IntRange(0, UINT64_MAX), default=0, metavar="N", help="Leave out the events up to this."
)
@previews_option
@_json_option
def watch(server: Server, job_id: str, after: int, previews: Path | None, as_json: bool) -> None:
    """Follow a job to its end. Leaving does not touch it; a job without a result exits with 1."""
    saved = Previews(previews)

    async def watching(client: AsyncClient) -> None:
        job = client.job(job_id)
        with saved.told(), JsonLines() if as_json else ProgressBar() as display:
            async for event in job.events(after, omit_pictures=not (as_json or saved.wanted)):
                saved.save(event)
                display.show(event)
        await job.wait()

    server.ask(watching)


@jobs.command()
@server_options
@_job_argument
@click.option("--strength", type=float, metavar="S", help="For a job that is balanced by strength: 0 to 1.")
@click.option("--content-weight", type=float, metavar="W", help="For a job with raw weights.")
@click.option("--style-weight", type=float, metavar="W", help="For a job with raw weights.")
@click.option("--tv-weight", type=float, metavar="W", help="Weight of the total variation.")
@click.option("--style-share", "style_shares", type=float, multiple=True, metavar="W", help="Once for each style.")
@click.option(
    "--content-layer",
    "content_layers",
    multiple=True,
    type=Text(),
    metavar="TAP=WEIGHT",
    help=f"For content. {_LAYERS}",
)
@click.option(
    "--style-layer", "style_layers", multiple=True, type=Text(), metavar="TAP=WEIGHT", help=f"For style. {_LAYERS}"
)
@click.option("--iterations", type=click.IntRange(1, UINT32_MAX), metavar="N", help="Over all scales: more, or fewer.")
@click.option("--priority", type=click.Choice(["interactive", "batch"]), help="While it waits.")
@_json_option
def steer(server: Server, /, job_id: str, as_json: bool, **changes: Any) -> None:
    """Change weights, iterations or priority of a job that waits or runs. What is not given stays as it is."""
    given = {name: value for name, value in changes.items() if value not in (None, ())}
    if not given:
        raise click.UsageError("give something to change")
    try:
        layers = {name: parse_option(name, ",".join(given[name])) for name in given.keys() & _LAYER_OPTIONS}
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    _print_job(server.ask(lambda client: client.job(job_id).steer(**{**given, **layers})), as_json)


@jobs.command()
@server_options
@_job_argument
@_json_option
def pause(server: Server, job_id: str, as_json: bool) -> None:
    """Hold a job where it is."""
    _print_job(server.ask(lambda client: client.job(job_id).pause()), as_json)


@jobs.command()
@server_options
@_job_argument
@_json_option
def resume(server: Server, job_id: str, as_json: bool) -> None:
    """Let a paused job go on."""
    _print_job(server.ask(lambda client: client.job(job_id).resume()), as_json)


@jobs.command()
@server_options
@_job_argument
@_json_option
def cancel(server: Server, job_id: str, as_json: bool) -> None:
    """Cancel a job that waits or runs."""
    _print_job(server.ask(lambda client: client.job(job_id).cancel()), as_json)


@jobs.command()
@server_options
@_job_argument
def delete(server: Server, job_id: str) -> None:
    """Remove a job that has ended, and all that it has."""
    server.ask(lambda client: client.delete_job(job_id))


@jobs.command()
@server_options
@_job_argument
@output_options(required=True)
def result(server: Server, job_id: str, output: OutputFile) -> None:
    """Save the final picture of a job, once it has ended; of one that was out of time, the best so far."""
    server.ask(lambda client: save_result(client.job(job_id), output, output.form))


def _print_job(job: JobStatus, as_json: bool) -> None:
    if as_json:
        print_json(job)
    else:
        print_table(job_table(job))
