"""ResNet-50 and DenseNet-121: what is said of them without torch, and what they compute, against torchvision."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from engine_runs import Pixels, as_image
from reference import relative_error
from torch import Tensor, nn
from torchvision_modules import DENSENET, MEAN, RESNET, STD, kept, module, path_of, raw_maps, seeded_state, smooth

from nst_engine import OptionError
from nst_engine.backbone import Backbone
from nst_engine.networks import NETWORKS
from nst_engine.tiling import whole
from nst_engine.torchvision_import import models

CPU = torch.device("cpu")
NAMES = [RESNET, DENSENET]


@cache
def backbone(name: str, dtype: torch.dtype = torch.float32, padding: str = "zeros") -> Backbone:
    return Backbone(NETWORKS[name], kept(seeded_state(name)), CPU, dtype, padding)


@cache
def reference(name: str) -> nn.Module:
    return module(name, seeded_state(name))


@pytest.fixture(scope="module")
def image(photo: Pixels) -> Tensor:
    """64 x 96."""
    return as_image(photo)


def test_taps_are_torchvisions_names():
    assert NETWORKS[RESNET].taps == (
        *("relu", "maxpool", "layer1.0", "layer1.1", "layer1.2", "layer2.0", "layer2.1", "layer2.2", "layer2.3"),
        *("layer3.0", "layer3.1", "layer3.2", "layer3.3", "layer3.4", "layer3.5", "layer4.0", "layer4.1", "layer4.2"),
    )
    assert NETWORKS[DENSENET].taps == (
        *("relu0", "pool0", "denseblock1", "transition1", "denseblock2", "transition2", "denseblock3", "transition3"),
        "denseblock4",
    )
    for name in NAMES:
        for tap in NETWORKS[name].taps:
            reference(name).get_submodule(path_of(name, tap))


@pytest.mark.parametrize("name", NAMES)
def test_every_tap_is_torchvisions_map_smoothed(name: str, image: Tensor):
    network = NETWORKS[name]
    found = backbone(name).features(image, network.taps)
    truth = raw_maps(name, reference(name), image, network.taps)
    assert list(found) == list(network.taps) == list(truth)
    for tap in network.taps:
        stride = network.stride(tap)
        assert truth[tap].shape == found[tap].shape == (1, network.channels(tap), 64 // stride, 96 // stride), tap
        assert truth[tap].std() > 1e-3
        assert relative_error(found[tap] - 1, smooth(truth[tap]) - 1) < 1e-4, tap


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_near(name: str, image: Tensor):
    taps = NETWORKS[name].taps[:5]
    truth = raw_maps(name, reference(name), image, taps)
    for tap, found in backbone(name, torch.bfloat16).features(image, taps).items():
        assert found.dtype == torch.float32
        assert relative_error(found - 1, smooth(truth[tap]) - 1) < 5e-2, tap


def test_only_what_is_asked_for_comes_back(image: Tensor):
    maps = backbone(RESNET).features(image, ["layer1.0", "relu"])
    assert list(maps) == ["relu", "layer1.0"]
    assert torch.equal(maps["relu"], backbone(RESNET).features(image, ["relu"])["relu"])


def test_the_network_ends_at_the_deepest_tap(image: Tensor):
    """One whose deeper layers are broken gives the shallow maps all the same."""
    state = kept(seeded_state(RESNET))
    state["layer2.0.conv1.weight"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=r"layer2\.0\.conv1\.weight"):
        Backbone(NETWORKS[RESNET], state, CPU, torch.float32)
    whole = backbone(RESNET)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: seen.append(tensor.shape) or tensor, lambda t: t):
        seen: list[torch.Size] = []
        whole.features(image.clone().requires_grad_(True), ["maxpool"])
    assert not [shape for shape in seen if len(shape) == 4 and shape[1] > 64]


def test_the_first_padding_repeats_the_edge(image: Tensor):
    first = reference(RESNET)
    padded = F.pad((image.double() / 255 - MEAN) / STD, (3, 3, 3, 3), mode="replicate")
    with torch.no_grad():
        convolved = F.conv2d(padded, first.get_parameter("conv1.weight"), stride=2)
        truth = smooth(first.get_submodule("bn1")(convolved).relu())
    found = backbone(RESNET, padding="replicate").features(image, ["relu"])["relu"]
    assert relative_error(found - 1, truth - 1) < 1e-4
    zeros = backbone(RESNET).features(image, ["relu"])["relu"]
    assert relative_error(zeros - 1, truth - 1) > 1e-2


def test_average_pooling_is_that_of_the_one_max_pooling(image: Tensor):
    maps = raw_maps(RESNET, reference(RESNET), image, ["relu"])
    truth = smooth(F.avg_pool2d(maps["relu"], 3, 2, 1, count_include_pad=False))
    found = backbone(RESNET).features(image, ["maxpool"], "average")["maxpool"]
    assert relative_error(found - 1, truth - 1) < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_the_minimum_side_leaves_a_position_at_every_tap(name: str):
    network = NETWORKS[name]
    assert network.minimum_side(["layer1.0" if name == RESNET else "denseblock1"]) == 4
    side = network.minimum_side(network.taps)
    assert side == 32
    maps = backbone(name).features(torch.rand(1, 3, side, side + 13) * 255, network.taps)
    assert maps[network.taps[-1]].shape[2:] == (1, 2 if name == RESNET else 1)


def thin_resnet() -> nn.Module:
    resnet = models().resnet
    return resnet.ResNet(resnet.Bottleneck, [3, 4, 6, 3], width_per_group=1)


def thin_densenet() -> nn.Module:
    return models().DenseNet(2, (6, 12, 24, 16), 4, bn_size=1)


@pytest.mark.parametrize(("name", "thin"), [(RESNET, thin_resnet), (DENSENET, thin_densenet)])
def test_the_reach_is_how_far_a_position_sees(name: str, thin: Callable[[], nn.Module]):
    """In a network of fewer channels and of positive weights, in which no gradient vanishes."""
    network = NETWORKS[name]
    made = thin().double().eval().requires_grad_(False)
    for layer in made.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.fill_(1 / layer.weight[0].numel())
        if isinstance(layer, nn.MaxPool2d):
            made.get_submodule("features" if name == DENSENET else "").add_module(
                "pool0" if name == DENSENET else "maxpool", nn.AvgPool2d(3, 2, 1)
            )
    maps: dict[str, Tensor] = {}
    for tap in network.taps:
        made.get_submodule(path_of(name, tap)).register_forward_hook(
            lambda _, __, output, tap=tap: maps.update({tap: output.clone()})
        )
    strip = torch.ones(1, 3, 32, 2 * network.reach(network.taps) + 224, dtype=torch.float64, requires_grad=True)
    made(strip)
    for tap, features in maps.items():
        stride, reach = network.stride(tap), network.reach([tap])
        column = features.shape[3] // 2
        (gradient,) = torch.autograd.grad(features[..., column].sum(), strip, retain_graph=True)
        seen = gradient.abs().sum((0, 1, 2)).nonzero().flatten()
        before, behind = column * stride - int(seen[0]), int(seen[-1]) - (column * stride + stride - 1)
        assert before == reach, tap
        assert 0 <= behind <= reach, tap


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_over_the_budget_is_refused_and_one_below_is_whole(name: str, image: Tensor):
    network, trunk = NETWORKS[name], backbone(name)
    taps = list(network.style_layers)
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        maps = trunk.features(F.interpolate(image, (256, 384)).requires_grad_(True), taps)
        sums = [smoothed.square().sum() for smoothed in maps.values()]
    assert len(sums) == len(taps)
    needed = sum(storages.values()) - sum(weight.nbytes for weight in trunk._trunk._module.state_dict().values())
    assert trunk.tiles(256, 384, taps, "max", int(needed * 1.05)) == (whole(256, 384),)
    with pytest.raises(OptionError) as caught:
        trunk.tiles(256, 384, taps, "max", int(needed * 0.95))
    assert caught.value.field == "size"
    for words in ("384x256", name, f"budget of {needed * 0.95 / 2**20:.0f} MiB", "memory_budget", "smaller size"):
        assert words in caught.value.message
