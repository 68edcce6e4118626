"""Settings of the model server reach its engine."""

from nst_server.config import ModelServerSettings
from nst_server.model_server.app import warm_engine


def test_the_memory_budget_is_the_engines():
    settings = ModelServerSettings(device="cpu", warm_models="", memory_budget_bytes=3 * 2**28)
    assert warm_engine(settings).memory_budget == 3 * 2**28
    assert warm_engine(ModelServerSettings(device="cpu", warm_models="")).memory_budget >= 2**28
