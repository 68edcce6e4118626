"""Following the job that `nst stylize` made, to its end or to that of the command."""

import asyncio
import dataclasses
from contextlib import suppress

import click

from nst_client.cli.output import Display, JsonLines
from nst_client.cli.output_file import OutputFile, save_result
from nst_client.cli.previews import Previews
from nst_client.errors import NstError
from nst_client.events import AnyEvent, ResultEvent, ends_history
from nst_client.job import AsyncJob

_CANCEL_SECONDS = 5.0


class Follower:
    """Follows a job: shows its events, and saves its pictures."""

    def __init__(self, output: OutputFile, previews: Previews, display: Display) -> None:
        self._output = output
        self._previews = previews
        self._display = display
        self._last = 0
        self._ended = False

    async def follow(self, job: AsyncJob) -> None:
        """Follow the job to its end. Raises JobFailed or JobCancelled when that is not a picture."""
        with self._previews.told():
            await self._follow(job)

    async def _follow(self, job: AsyncJob) -> None:
        wants_pictures = isinstance(self._display, JsonLines) or self._previews.wanted
        async for event in job.events(omit_pictures=not wants_pictures):
            self._ended = ends_history(event)
            if isinstance(event, ResultEvent):
                picture = await save_result(job, self._output)
                self._show(dataclasses.replace(event, picture=picture))
                return
            self._previews.save(event)
            self._show(event)
        await save_result(job, self._output)  # raises what the history ended with

    async def cancel(self, job: AsyncJob) -> None:
        """Cancel the job, and show what still comes of it for a short while; say so where nobody answers."""
        cancelled = False
        with suppress(TimeoutError):
            async with asyncio.timeout(_CANCEL_SECONDS):
                await job.cancel()
                cancelled = True
                async for event in job.events(self._last):
                    self._show(event)
        if not cancelled:
            click.echo(f"No answer: the job may go on. `nst jobs cancel {job.id}` ends it.", err=True)

    async def abandon(self, job: AsyncJob) -> None:
        """Cancel the job unless it has ended: whatever went wrong, nobody waits for it any more."""
        if not self._ended:
            with suppress(NstError, TimeoutError):
                async with asyncio.timeout(_CANCEL_SECONDS):
                    await job.cancel()

    def _show(self, event: AnyEvent) -> None:
        self._last = event.sequence
        self._display.show(event)
