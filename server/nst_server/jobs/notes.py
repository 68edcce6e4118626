"""Notes for the keeper: names on subjects of a stream, so that all of a kind are read with one request."""

from functools import partial

from nst_server.jobs.backbone import Backbone, persistently, stored_subjects
from nst_server.jobs.topology import NOTES

DEADLINE = "deadline"  # TIME.JOB: the job's time is up then, in Unix milliseconds
PAUSED = "paused"  # TENANT.JOB: the job is paused
RELEASED = "released"  # a picture's name: a job that had it is gone, so it need not be kept as an upload is


class Notes:
    """The notes of one kind."""

    def __init__(self, backbone: Backbone, kind: str, *, patience: float | None) -> None:
        """`patience` is how long to keep trying while NATS is away, in seconds; None is for ever."""
        self._backbone = backbone
        self._prefix = f"nst.note.{kind}."
        self._patience = patience

    async def put(self, name: str) -> None:
        """Makes a note of the name.

        Raises:
            StoreFull: there is no room.
        """
        publish = partial(self._backbone.jetstream.publish, self._prefix + name, b"")
        await persistently(publish, seconds=self._patience, stream=NOTES)

    async def all(self, below: str = "") -> set[str]:
        """Every name that there is a note of, or those that begin with `below` and a `.`."""
        pattern = f"{self._prefix}{below}.>" if below else f"{self._prefix}>"
        subjects = await stored_subjects(self._backbone, NOTES, pattern, seconds=self._patience)
        return {subject.removeprefix(self._prefix) for subject in subjects}

    async def drop(self, name: str) -> None:
        """Removes the note; no error if there is none."""
        purge = partial(self._backbone.jetstream.purge_stream, NOTES, subject=self._prefix + name)
        await persistently(purge, seconds=self._patience)
