"""What the client says of itself."""

from importlib.metadata import version

import pytest

import nst_client
from nst_client import AsyncClient, Client


def test_a_client_and_a_job_are_told_by_what_they_are_of() -> None:
    core = AsyncClient("localhost:50051")
    assert [repr(core), repr(core.job("job-1"))] == ["AsyncClient('localhost:50051')", "AsyncJob('job-1')"]
    with Client("localhost:50051") as client:
        assert [repr(client), repr(client.job("job-1"))] == ["Client('localhost:50051')", "Job('job-1')"]


def test_the_version_is_that_of_the_distribution() -> None:
    assert nst_client.__version__ == version("nst-serve")
    with pytest.raises(AttributeError, match="'nst_client' has no attribute 'version'"):
        nst_client.version  # type: ignore[attr-defined]  # noqa: B018
