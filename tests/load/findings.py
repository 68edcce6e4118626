"""What a run with disturbances must not have changed, as rows of its table."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from statistics import median
from time import monotonic

from clients import Followed, LoadClient
from cluster import Cluster, Stream
from histories import ended_once, is_gapless, resumes
from jobs import Plan, Work
from table import Table

from nst_client import JobStatus, NotFound

END_SECONDS = 300.0
# A ticket whose record never followed is dropped after 120 s; and whoever tidies the store needs a while.
STORE_SECONDS = 150.0
TICKETS, EVENTS, CHECKPOINTS = "NST_TICKETS", "NST_EVENTS", "NST_CHECKPOINTS"
WORK_STREAMS = (TICKETS, CHECKPOINTS)
JOB_STREAMS = (*WORK_STREAMS, EVENTS, "NST_PREVIEWS")
UNCUT = "uncut"
OUT_OF_TIME = "DEADLINE_EXCEEDED"

Pairs = Sequence[tuple[LoadClient, Followed]]


async def uncut_results(clients: Sequence[LoadClient], works: Sequence[Work]) -> dict[Work, str]:
    """The digest of the picture of each work, from runs that nothing disturbs.

    Raises:
        RuntimeError: one of them fails.
    """
    plans = [Plan(f"{UNCUT}-{number}", work, at=0.0) for number, work in enumerate(works)]
    runs = [clients[number % len(clients)].run(Followed(plan)) for number, plan in enumerate(plans)]
    followed = await asyncio.gather(*runs)
    if failed := [run for run in followed if not run.result]:
        raise RuntimeError(f"not even an undisturbed run succeeds: {failed[0].error or failed[0].events[-1]}")
    return {run.plan.work: run.result for run in followed}


def start_jobs(clients: Sequence[LoadClient], plans: Sequence[Plan]) -> tuple[Pairs, list[asyncio.Task[None]]]:
    """Every job with the client that will ask for it in its time, and the tasks that do."""

    async def live(client: LoadClient, followed: Followed) -> None:
        await asyncio.sleep(followed.plan.at)
        await client.run(followed)

    pairs = [(clients[number % len(clients)], Followed(plan)) for number, plan in enumerate(plans)]
    return pairs, [asyncio.create_task(live(client, followed)) for client, followed in pairs]


async def let_end(pairs: Pairs, tasks: Sequence[asyncio.Task[None]]) -> None:
    """Waits until every client has seen the end of its jobs; who has not in `END_SECONDS` is in error."""
    _, pending = await asyncio.wait(tasks, timeout=END_SECONDS)
    for (_, followed), task in zip(pairs, tasks, strict=True):
        if task in pending:
            followed.error = (
                followed.error or f"no end after {END_SECONDS:g} s; the last event is {followed.events[-1:]}"
            )
            task.cancel()
        else:
            task.result()


async def add_findings(table: Table, pairs: Pairs, uncut: dict[Work, str], cluster: Cluster) -> None:
    """Adds everything that must hold once all jobs have ended."""
    await _add_endings(table, pairs)
    await _add_histories(table, pairs, cluster)
    _add_pictures(table, pairs, uncut)
    _add_redone(table, pairs)
    await _add_leftovers(table, pairs, cluster)


async def _add_endings(table: Table, pairs: Pairs) -> None:
    asked = {followed.job_id for _, followed in pairs if followed.job_id}
    deleted = {followed.job_id for _, followed in pairs if followed.deleted}
    known = {job.job_id: job for job in await _known(pairs) if not _is_uncut(job)}
    states = Counter(job.state.name for job in known.values())
    _add(table, "jobs not accepted", [followed.plan.name for _, followed in pairs if not followed.job_id])
    table.add("jobs accepted", len(asked))
    table.add("jobs succeeded", states["SUCCEEDED"])
    table.add("jobs cancelled", states["CANCELLED"])
    failed = {job.job_id: job.error.reason for job in known.values() if job.error}
    late = [job_id for job_id, reason in failed.items() if reason == OUT_OF_TIME]
    table.add("jobs out of time", len(late))
    limited = {followed.job_id for _, followed in pairs if followed.plan.time_limit}
    _add(table, "jobs failed otherwise", [job_id for job_id in failed if job_id not in late or job_id not in limited])
    table.add("jobs deleted", len(deleted))
    _add(table, "jobs deleted and still there", sorted(deleted & known.keys()))
    kept = asked - deleted
    _add(table, "jobs lost", [job_id for job_id in kept if job_id not in known or not known[job_id].state.is_final])
    _add(table, "jobs that nobody asked for", sorted(set(known) - asked))
    _add(table, "errors that clients saw", [f"{f.plan.name}: {f.error}" for _, f in pairs if f.error])


async def _known(pairs: Pairs) -> list[JobStatus]:
    return [job for client in {client for client, _ in pairs} async for job in client.sdk.jobs()]


def _is_uncut(job: JobStatus) -> bool:
    return UNCUT in job.request_id


async def _add_histories(table: Table, pairs: Pairs, cluster: Cluster) -> None:
    subjects = (await cluster.store())[EVENTS].subjects
    gaps, different, again = [], [], []
    for client, followed in pairs:
        if followed.deleted or not followed.events or not followed.events[-1].job_state.is_final:
            continue
        history = await client.history(followed.job_id)
        if not is_gapless(followed.events):
            gaps.append(followed.job_id)
        if history != followed.events:
            different.append(followed.job_id)
        # A watcher leaves after the final event: only the store knows whether another came after it.
        if not ended_once(history) or subjects[f"nst.event.{followed.job_id}"] != len(history):
            again.append(followed.job_id)
    _add(table, "jobs that ended more than once", again)
    _add(table, "histories with gaps or repeats", gaps)
    _add(table, "histories unlike a fresh watcher's", different)


def _add_pictures(table: Table, pairs: Pairs, uncut: dict[Work, str]) -> None:
    compared = [followed for _, followed in pairs if followed.result and followed.plan.reproducible]
    table.add("results compared with an uncut run", len(compared))
    different = [followed.job_id for followed in compared if followed.result != uncut[followed.plan.work]]
    _add(table, "results that differ in any pixel", different)


def _add_redone(table: Table, pairs: Pairs) -> None:
    found = [resume for _, followed in pairs for resume in resumes(followed.events)]
    table.add("attempts that went on from another", len(found))
    table.add("iterations done again, in all", sum(resume.iterations for resume in found))
    table.add("seconds done again, median", median(resume.seconds for resume in found) if found else 0.0)
    table.details["resumes"] = [asdict(resume) for resume in found]


async def _add_leftovers(table: Table, pairs: Pairs, cluster: Cluster) -> None:
    store, seconds = await _settled(cluster, WORK_STREAMS)
    _add(table, "tickets left behind", sorted(store[TICKETS].subjects))
    _add(table, "checkpoint chunks left behind", sorted(store[CHECKPOINTS].subjects))
    table.add("seconds until the store was clean", round(seconds, 1))
    await _delete_all(pairs)
    store, seconds = await _settled(cluster, JOB_STREAMS)
    left = sorted(subject for name in JOB_STREAMS for subject in store[name].subjects)
    _add(table, "messages left of deleted jobs", left)
    table.add("seconds until they were gone", round(seconds, 1))


async def _delete_all(pairs: Pairs) -> None:
    for client in {client for client, _ in pairs}:
        for job in [job async for job in client.sdk.jobs()]:
            with suppress(NotFound):  # clients without a name are one tenant and see each other's
                await client.sdk.delete_job(job.job_id)


async def _settled(cluster: Cluster, names: Sequence[str]) -> tuple[dict[str, Stream], float]:
    """The job store once these streams are empty, or after a while; and the seconds that took."""
    start = monotonic()
    while True:
        store = await cluster.store()
        seconds = monotonic() - start
        if not any(store[name].messages for name in names) or seconds > STORE_SECONDS:
            return store, seconds
        await asyncio.sleep(1)


def _add(table: Table, name: str, broken: Sequence[str]) -> None:
    """A row of what must not be, with its names in the details."""
    table.add(name, len(broken), "0", not broken)
    table.details[name] = list(broken)
