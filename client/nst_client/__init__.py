"""The client of nst-serve: `Client` blocks, `AsyncClient` is for asyncio.

from nst_client import Client

with Client("127.0.0.1:50051") as client:
    job = client.stylize("photo.jpg", "painting.jpg")
    for event in job:
        print(event)
    job.result().save("out.png")
"""

from typing import TYPE_CHECKING

from nst_client.client import AsyncClient
from nst_client.errors import (
    InvalidRequest,
    JobCancelled,
    JobFailed,
    NotFound,
    NstError,
    ServerBusy,
    ServerUnavailable,
)
from nst_client.events import (
    AnyEvent,
    ErrorEvent,
    Event,
    Failure,
    JobState,
    JobStatus,
    Partial,
    PreviewEvent,
    Progress,
    ProgressEvent,
    ResultEvent,
    StateEvent,
)
from nst_client.formats import EncodedFormat, TensorFormat
from nst_client.images import ImageRef, Picture
from nst_client.info import Model, ModelServer, ServerInfo
from nst_client.job import AsyncJob
from nst_client.spec import Style
from nst_client.sync import Client, Job

__all__ = [
    "AnyEvent",
    "AsyncClient",
    "AsyncJob",
    "Client",
    "EncodedFormat",
    "ErrorEvent",
    "Event",
    "Failure",
    "ImageRef",
    "InvalidRequest",
    "Job",
    "JobCancelled",
    "JobFailed",
    "JobState",
    "JobStatus",
    "Model",
    "ModelServer",
    "NotFound",
    "NstError",
    "Partial",
    "Picture",
    "PreviewEvent",
    "Progress",
    "ProgressEvent",
    "ResultEvent",
    "ServerBusy",
    "ServerInfo",
    "ServerUnavailable",
    "StateEvent",
    "Style",
    "TensorFormat",
]

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        # Looking it up reads files, which nobody who imports this need wait for.
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import version

        return version("nst-serve")
