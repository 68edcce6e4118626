"""The real network and small pictures, shared by the tests of the engine."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import reference
import skimage
import torch
from engine_runs import MODEL, Pixels
from PIL import Image
from torch import Tensor

from nst_engine import Engine, hardware, weights
from nst_engine.backbone import Backbone
from nst_engine.networks import NETWORKS

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def engine() -> Engine:
    """An engine with the real weights, fetched if need be; one thread, so that bits repeat."""
    engine = Engine("cpu", threads=1)
    engine.warm_up(MODEL)
    return engine


@pytest.fixture
def with_threads() -> Iterator[Callable[[int], None]]:
    """Sets how many threads torch has, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def photo(content_path: Path) -> Pixels:
    """A photograph, 96 x 64."""
    return np.array(Image.open(content_path).convert("RGB").resize((96, 64)))


@pytest.fixture(scope="session")
def texture(style_path: Path) -> Pixels:
    """A stained tissue, 80 x 72."""
    return np.array(Image.open(style_path).convert("RGB").resize((80, 72)))


@pytest.fixture(scope="session")
def portrait() -> Pixels:
    """An astronaut from the waist up, 512 x 512; her face reaches from (175, 65) to (270, 165)."""
    return np.array(Image.open(Path(skimage.__file__).parent / "data" / "astronaut.png").convert("RGB"))


@pytest.fixture(scope="session")
def checks() -> Pixels:
    """A drawn pattern in two colours, 64 x 64."""
    rows, columns = np.indices((64, 64)) // 8
    return np.where(((rows + columns) % 2)[..., None], (230, 120, 20), (20, 40, 160)).astype(np.uint8)


@pytest.fixture(scope="session")
def real_weights(engine: Engine) -> dict[str, Tensor]:
    """The default network's weights, read from the cache without the engine."""
    return reference.cached_weights(weights.locate(MODEL))


@pytest.fixture(scope="session")
def loaded(engine: Engine) -> dict[str, Tensor]:
    """The default network's weights, as the engine reads them."""
    return weights.load(MODEL)


@pytest.fixture(scope="session")
def backbone(loaded: dict[str, Tensor]) -> Callable[[torch.dtype], Backbone]:
    """The default network in the precision asked for."""
    made: dict[torch.dtype, Backbone] = {}

    def make(dtype: torch.dtype) -> Backbone:
        if dtype not in made:
            made[dtype] = Backbone(
                NETWORKS[MODEL],
                loaded,
                CPU,
                dtype,
                sparing=dtype == torch.bfloat16 and hardware.multiplies_dearly(CPU, dtype),
            )
        return made[dtype]

    return make
