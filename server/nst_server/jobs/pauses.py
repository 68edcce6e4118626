"""How many jobs of a tenant are paused: they hold no place in the queue, but keep all that they have stored."""

from functools import partial

from nst.internal.v1.job_record_pb2 import JobRecord
from nst_server.jobs.backbone import Backbone, persistently
from nst_server.jobs.notes import PAUSED, Notes
from nst_server.jobs.room import Room
from nst_server.jobs.topology import CHECKPOINTS, TICKETS, QueueRules, tenant_token


class TooManyPaused(Exception):
    """As many jobs of the tenant are paused as one may have."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the tenant has max_tenant_paused_jobs = {limit} jobs paused")


class PausedJobs:
    """Notes of the jobs that are paused."""

    def __init__(self, backbone: Backbone, *, patience: float | None) -> None:
        self._backbone = backbone
        self._patience = patience
        self._notes = Notes(backbone, PAUSED, patience=patience)

    async def note(self, record: JobRecord) -> None:
        """Makes a note of a job that is to be paused.

        Raises:
            TooManyPaused: the tenant has as many as it may.
            StoreFull: the job runs, and what room there is for checkpoints is for those that go on.
        """
        if record.lease.held:
            await Room(self._backbone, patience=self._patience).check(CHECKPOINTS.stream)
        stream_info = partial(self._backbone.jetstream.stream_info, TICKETS)
        rules = QueueRules.of((await persistently(stream_info, seconds=self._patience)).config)
        # First, so that of several at once none is overlooked.
        await self._notes.put(_name(record))
        if len(await self._notes.all(tenant_token(record.tenant))) > rules.max_tenant_paused_jobs:
            await self.forget(record)
            raise TooManyPaused(rules.max_tenant_paused_jobs)

    async def forget(self, record: JobRecord) -> None:
        """Drops the note of a job, if there is one."""
        await self._notes.drop(_name(record))

    async def noted(self) -> set[str]:
        """What there are notes of, for `correct`."""
        return await self._notes.all()

    async def correct(self, noted: set[str], records: list[JobRecord]) -> None:
        """Makes the notes those of the records that are paused: who writes both may stop in between."""
        paused = {_name(one) for one in records if one.control.paused and not one.HasField("ending")}
        for name in noted - paused:
            await self._notes.drop(name)
        for name in paused - noted:
            await self._notes.put(name)


def _name(record: JobRecord) -> str:
    return f"{tenant_token(record.tenant)}.{record.job_id}"
