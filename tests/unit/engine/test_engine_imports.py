"""What the engine leaves alone: torch's compiler takes seconds to load, and writes into the temporary folder."""

import subprocess
import sys

import pytest

PARAMETRIZATIONS = ("pixels", "fourier", "network")
SCRIPT = """
import sys
import numpy as np
from nst_engine import Engine, Style, StylizeOptions
picture = np.zeros((32, 32, 3), np.uint8)
engine = Engine()
for parametrization in sys.argv[1:]:
    options = StylizeOptions(size=32, iterations=1, parametrization=parametrization)
    session = engine.start(picture, [Style(picture)], options)
    assert sum(session.working_memory) > 0
    engine.step([session])
    assert "torch._dynamo" not in sys.modules
    print(parametrization, flush=True)
"""


@pytest.fixture(scope="module")
def without_the_compiler() -> list[str]:
    """The parametrizations, one after the other in a process of their own, up to the first that loads it."""
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, *PARAMETRIZATIONS], stdout=subprocess.PIPE, text=True, timeout=60, check=False
    )
    return run.stdout.split()


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_a_session_does_not_load_the_compiler(without_the_compiler: list[str], parametrization: str):
    assert parametrization in without_the_compiler
