"""What every test may use: pictures, and a real server."""

import gc
import io
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from nst_processes import Server, running_server

# The same examples in every run: what fails here fails everywhere.
settings.register_profile("seeded", derandomize=True)
settings.load_profile("seeded")

# A shell that runs the suite in the background makes it, and all that it starts, deaf to SIGINT, and nohup to SIGHUP;
# tests of these signals then wait for an end that cannot come.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)


def pytest_collection_finish() -> None:
    """Spares what is loaded by now, torch above all, from the search for garbage, which takes 0.2 s a time."""
    gc.freeze()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A whole server that tests of one worker share; they may not kill it."""
    with running_server(tmp_path_factory.mktemp("server")) as server:
        yield server


def folder_of(package: str) -> Path:
    """Where an installed package is; to import it would take a second."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


@pytest.fixture(scope="session")
def content_path() -> Path:
    """A photograph, 640 x 427."""
    return folder_of("sklearn") / "datasets" / "images" / "china.jpg"


@pytest.fixture(scope="session")
def style_path() -> Path:
    """A picture with a texture of its own, 512 x 512."""
    return folder_of("skimage") / "data" / "ihc.png"


@pytest.fixture(scope="session")
def mypy_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What type checks share, in all workers: most of their time goes into the types of other packages."""
    return tmp_path_factory.getbasetemp().parent / "mypy_cache"


@pytest.fixture(scope="session")
def small_picture() -> bytes:
    """A PNG file, 48 x 32."""
    pixels = np.random.default_rng(7).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
