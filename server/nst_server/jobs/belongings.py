"""What a job has in the store besides its record and its history, and since when nobody has used it."""

from collections.abc import Iterator

from google.protobuf.message import Message

from nst.internal.v1.job_record_pb2 import Ending, JobRecord
from nst.v1 import image_pb2, job_pb2
from nst_server.jobs.topology import picture_name

USE_NOTE_SECONDS = 300.0  # a use sooner than this after the last one is not written down
IN_USE_SECONDS = 2 * USE_NOTE_SECONDS


def incarnation(job: JobRecord | job_pb2.Job) -> str:
    """A name that the job does not share with a later one made under the same id.

    Its previews and checkpoints are stored below this name.
    """
    return f"{job.job_id}-{job.create_time.ToNanoseconds():x}"


def same_incarnation(one: JobRecord, other: JobRecord) -> bool:
    """False when the job was deleted in between and made anew."""
    return one.create_time == other.create_time


def pictures_of(record: JobRecord) -> set[str]:
    """The names, in the picture store, of all that the job was made from, was let go with, and ended with."""
    found = {*_references(record.spec), *_references(record.checkpoint)}
    if record.ending.picture:
        found.add(record.ending.picture)
    return {picture_name(record.tenant, digest) for digest in found}


def _references(message: Message) -> Iterator[str]:
    """Every reference in the message, so that no field that holds a picture can be forgotten here."""
    if isinstance(message, image_pb2.ImageReference):
        yield message.sha256
        return
    for _, value in message.ListFields():
        # What is repeated is a sequence or, of a map, its keys.
        parts = [value] if isinstance(value, Message | str | bytes | int | float) else value
        for part in parts:
            if isinstance(part, Message):
                yield from _references(part)


def ending_of(event: job_pb2.JobEvent) -> Ending:
    """What the record says of the event that ended the job."""
    picture = event.error.partial if event.HasField("error") else event.result
    return Ending(time=event.time, picture=picture.reference.sha256, state=event.job_state)


def last_used(record: JobRecord) -> float:
    """When the job was created, ended or asked for last, in Unix seconds."""
    times = (record.create_time, record.ending.time, record.last_use_time)
    return max(time.ToNanoseconds() for time in times) / 1e9


def in_use(record: JobRecord, now: float) -> bool:
    """True while somebody may be reading what the job left."""
    return record.HasField("last_use_time") and now - record.last_use_time.ToNanoseconds() / 1e9 < IN_USE_SECONDS
