"""Settings of the model server are checked, and reach its engine."""

import pytest
from click.testing import CliRunner

from nst_server.config import ModelServerSettings, parse_models, parse_weights
from nst_server.main import main
from nst_server.model_server.app import warm_engine


def test_the_memory_budget_is_the_engines():
    settings = ModelServerSettings(device="cpu", warm_models="", memory_budget_bytes=3 * 2**28)
    assert warm_engine(settings).memory_budget == 3 * 2**28
    assert warm_engine(ModelServerSettings(device="cpu", warm_models="")).memory_budget >= 2**28


@pytest.mark.parametrize(("environment", "loaded"), [({}, "vgg16-caffe"), ({"NST_WARM_MODELS": ""}, "")])
def test_no_model_need_be_loaded_before_work_starts(environment, loaded, monkeypatch):
    """Nor can one be where there is no way out."""
    found = []

    async def serve(*arguments):
        found.append(arguments[-1].warm_models)

    monkeypatch.setattr("nst_server.model_server.app.serve", serve)
    ended = CliRunner().invoke(main, ["model-server", "--nats", "nats://127.0.0.1:1"], env=environment)
    assert ended.exit_code == 0, ended.output
    assert found == [loaded]


def test_weights_are_read():
    assert parse_weights("") == {}
    assert parse_weights("a=2,b.c=0.5,d=e=1") == {"a": 2.0, "b.c": 0.5, "d=e": 1.0}


@pytest.mark.parametrize("text", ["a", "a=", "=1", "a=0", "a=-1", "a=nan", "a=inf", "a=1,b"])
def test_weights_that_are_none_are_refused_by_name(text):
    with pytest.raises(ValueError, match="tenant_weights"):
        parse_weights(text)


@pytest.mark.parametrize("command", [["serve"], ["model-server", "--nats", "nats://127.0.0.1:1"]])
def test_a_command_with_weights_that_are_none_does_not_start(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(main, [*command, "--tenant-weights", "a"])
    assert ended.exit_code == 2
    assert "tenant_weights: 'a'" in ended.output


@pytest.mark.parametrize("device", ["cuda:99", "bogus"])
def test_a_device_that_is_not_there_is_a_usage_error(device):
    ended = CliRunner().invoke(main, ["model-server", "--nats", "nats://127.0.0.1:1", "--device", device])
    assert ended.exit_code == 2
    assert f"device: '{device}' cannot be used here" in ended.output


def test_models_to_load_are_told_from_their_names():
    assert parse_models("") == []
    assert parse_models("vgg16-caffe, resnet50-torchvision, ") == ["vgg16-caffe", "resnet50-torchvision"]
    with pytest.raises(ValueError, match=r"warm_models: must be of vgg16-caffe, .*, not 'vgg16'"):
        ModelServerSettings(warm_models="vgg16-caffe,vgg16")
