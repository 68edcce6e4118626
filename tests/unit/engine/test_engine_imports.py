"""What the engine leaves alone: torch's compiler takes seconds to load, and writes into the temporary folder."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
import numpy as np
from nst_engine import Engine, Style, StylizeOptions
picture = np.zeros((32, 32, 3), np.uint8)
options = StylizeOptions(size=32, iterations=1, parametrization=sys.argv[1])
engine = Engine()
session = engine.start(picture, [Style(picture)], options)
assert sum(session.working_memory) > 0
engine.step([session])
assert "torch._dynamo" not in sys.modules
"""


@pytest.mark.parametrize("parametrization", ["pixels", "fourier", "network"])
def test_a_session_does_not_load_the_compiler(parametrization):
    subprocess.run([sys.executable, "-c", SCRIPT, parametrization], check=True, timeout=60)
