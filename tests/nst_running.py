"""A model server's job, of which a test uses a part."""

from types import SimpleNamespace
from typing import Any

from nst_server.config import ModelServerSettings
from nst_server.jobs.tickets import Flow
from nst_server.model_server.job import RunningJob

FLOW = Flow("interactive", "tenant")


def running_job(
    lease: Any, *, backbone: Any = None, runner: Any = None, others: Any = None, **settings: Any
) -> RunningJob:
    """One that has nothing but what is given, and `settings` of its server."""
    unused = SimpleNamespace(jetstream=None)
    return RunningJob(
        lease,
        FLOW,
        backbone or unused,
        runner or unused,
        networks=unused,
        others=others or unused,
        preparations=unused,
        settings=ModelServerSettings(**settings),
        charge=lambda seconds: None,
    )
