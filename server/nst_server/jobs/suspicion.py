"""Which jobs may harm the model server that works on them, by what their records say.

A lease that ends without a word counts against the job, until its model server turns out to be alive. It
is suspected until a checkpoint is made beyond the furthest iteration that it may have reached, whether or not the store
has room for it: so one that fails at the same place each time never clears itself.
"""

import time

from google.rpc import code_pb2

from nst.internal.v1.job_record_pb2 import JobRecord
from nst.v1 import job_pb2
from nst_server.jobs.deadlines import is_overdue


class MustRunAlone(Exception):
    """The job is suspected, and may be claimed only by a model server that has no other job."""


def is_suspected(record: JobRecord) -> bool:
    """Whether the job may have killed its model server, or ran out of memory, and has not got on since."""
    return bool(record.lease.lost_attempts) or record.lease.alone


def is_quarantined(record: JobRecord, max_lost_attempts: int) -> bool:
    """Whether it has been given enough model servers."""
    return len(record.lease.lost_attempts) >= max_lost_attempts


def needs_server_to_itself(record: JobRecord, max_lost_attempts: int) -> bool:
    """Whether it is suspected, and is to run at all."""
    quarantined = is_quarantined(record, max_lost_attempts)
    ends = record.control.cancel or record.control.paused or quarantined or is_overdue(record, time.time())
    return is_suspected(record) and not ends


def clear(record: JobRecord, iteration: int) -> None:
    """Takes the suspicion away if a checkpoint of this iteration shows that the job gets on."""
    if iteration > record.lease.furthest:
        del record.lease.lost_attempts[:]
        record.lease.alone = False


def quarantine_error(record: JobRecord, reached: int, max_lost_attempts: int) -> job_pb2.JobError:
    """What the client is told of a job that is given no other model server."""
    return job_pb2.JobError(
        code=code_pb2.RESOURCE_EXHAUSTED if record.lease.alone else code_pb2.ABORTED,
        reason="QUARANTINED",
        message=f"{len(record.lease.lost_attempts)} model servers stopped while they worked on this job, which came no "
        f"further than iteration {reached}; the limit is max_lost_attempts = {max_lost_attempts}",
    )
