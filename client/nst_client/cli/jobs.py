"""`nst jobs`: look at, follow and end jobs that exist."""

import click
from rich.console import Console
from rich.table import Table

from nst_client.cli.output import JsonLines, ProgressBar, plain, print_json
from nst_client.cli.output_file import OutputFile, output_option, save_result
from nst_client.cli.server import Server, server_options
from nst_client.client import AsyncClient
from nst_client.events import JobState, JobStatus

_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_job_argument = click.argument("job_id", metavar="JOB")
_STATES = {state.name.lower(): state for state in JobState if state is not JobState.UNSPECIFIED}


@click.group()
def jobs() -> None:
    """Look at, follow and end jobs."""


@jobs.command("list")
@server_options
@click.option("--state", "states", multiple=True, type=click.Choice(list(_STATES)), help="Only jobs in this state.")
@_json_option
def list_jobs(server: Server, states: tuple[str, ...], as_json: bool) -> None:
    """List jobs, newest first; with --json one a line."""
    table = Table("job", "state", "iterations", "made", "tenant", box=None)

    async def listing(client: AsyncClient) -> None:
        async for job in client.jobs([_STATES[state] for state in states]):
            if as_json:
                print_json(job)
            else:
                table.add_row(*_row(job))

    server.ask(listing)
    if not as_json:
        Console().print(table)


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
@click.option("--after", type=click.IntRange(min=0), default=0, metavar="N", help="Leave out the events up to this.")
@_json_option
def watch(server: Server, job_id: str, after: int, as_json: bool) -> None:
    """Follow a job to its end. Leaving does not touch it; a job without a result exits with 1."""

    async def watching(client: AsyncClient) -> None:
        job = client.job(job_id)
        with JsonLines() if as_json else ProgressBar() as display:
            async for event in job.events(after, omit_pictures=not as_json):
                display.show(event)
        await job.wait()

    server.ask(watching)


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
@output_option
def result(server: Server, job_id: str, output: OutputFile) -> None:
    """Save the final picture of a job, once it has ended; of one that was out of time, the best so far."""
    server.ask(lambda client: save_result(client.job(job_id), output, output.codec))


def _row(job: JobStatus) -> tuple[str, ...]:
    done = f"{job.progress.iteration}/{job.progress.iterations}" if job.progress else ""
    return job.job_id, job.state.name.lower(), done, f"{job.create_time:%Y-%m-%d %H:%M:%S}", job.tenant


def _print_job(job: JobStatus, as_json: bool) -> None:
    if as_json:
        print_json(job)
        return
    table = Table(box=None, show_header=False)
    for name, value in plain(job).items():
        if value not in (None, ""):
            table.add_row(name, str(value))
    Console().print(table)
