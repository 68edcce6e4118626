"""Style statistics against float64 references: scipy's matrix root, plain loops over sorted values, and autograd."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from engine_runs import SHALLOW, Pixels, as_image, at_balance, finish, noisy, quick, shares_of, steps
from numpy.typing import NDArray
from reference import relative_error
from torch import Tensor

from nst_engine import Engine, Style, StylizeOptions, checkpoint, losses, wasserstein
from nst_engine.backbone import Backbone
from nst_engine.balance import PLAIN
from nst_engine.objective import Objective
from nst_engine.statistics import Statistic, make_statistic
from nst_engine.wasserstein import NOISE_SHARE

STATISTICS = ["gram", "moments", "sliced"]
Columns = NDArray[np.float64]


def statistic(name: str, seed: int = 0) -> Statistic[Any, Any]:
    return make_statistic(StylizeOptions(style_statistic=name, seed=seed))


def feature_map(seed: int, channels: int = 6, height: int = 9, width: int = 7, spread: float = 3.0) -> Tensor:
    """Correlated, skewed features, not centred, as after a ReLU."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, channels, generator=generator)
    flat = (mixing @ torch.randn(channels, height * width, generator=generator)).relu() * spread + 1.0
    return flat.view(1, channels, height, width)


def columns(features: Tensor) -> Columns:
    return features[0].flatten(1).double().numpy()


def loss(
    chosen: Statistic[Any, Any],
    image: Tensor,
    style: Tensor,
    image_weights: Tensor | None = None,
    style_weights: Tensor | None = None,
) -> Tensor:
    target = chosen.blend([chosen.measure(style, style_weights)], [1.0])
    return chosen.distance(chosen.measure(image, image_weights), target)


def gaussian_distance(image: Columns, style: Columns) -> float:
    """W2^2 of two normal distributions by scipy's matrix root, over the style's mean squared norm."""
    mean, wanted = image.mean(1), style.mean(1)
    covariance, target = np.cov(image, bias=True), np.cov(style, bias=True)
    noise = NOISE_SHARE * np.linalg.eigvalsh(target)[-1] * np.eye(len(mean))
    root = scipy.linalg.sqrtm(target + noise)
    cross = scipy.linalg.sqrtm(root @ (covariance + noise) @ root).real
    between = ((mean - wanted) ** 2).sum()
    return (between + np.trace(covariance + target + 2 * noise - 2 * cross)) / (np.trace(target) + wanted @ wanted)


def test_moments_are_compared_as_normal_distributions():
    image, style = feature_map(1), feature_map(2, height=8, width=11)
    expected = gaussian_distance(columns(image), columns(style))
    assert float(loss(statistic("moments"), image, style)) == pytest.approx(expected, rel=1e-4)


def test_directions_in_which_the_style_does_not_vary_cost_their_variance():
    """A style of four positions varies in three directions of six: the rest of the image's variance is all excess."""
    image, style = feature_map(1), feature_map(2, height=2, width=2)
    basis = np.linalg.svd(columns(style) - columns(style).mean(1, keepdims=True))[0][:, :3]
    inside, wanted = (basis.T @ (columns(one) - columns(one).mean(1, keepdims=True)) for one in (image, style))
    power = (columns(style) ** 2).sum(0).mean()
    excess = np.trace(np.cov(columns(image), bias=True)) - np.trace(np.cov(inside, bias=True))
    means = ((columns(image).mean(1) - columns(style).mean(1)) ** 2).sum()
    expected = (gaussian_distance(inside, wanted) * (wanted**2).sum(0).mean() + means + excess) / power
    assert float(loss(statistic("moments"), image, style)) == pytest.approx(expected, rel=1e-4)


def test_the_gradient_of_moments_is_that_of_the_formula():
    """The reference differentiates a root by the eigenvalues of S C, which is not symmetric, in float64."""
    image, style = feature_map(1), feature_map(2, height=8, width=11)
    variable, wanted = image.double().requires_grad_(True), style.double()[0].flatten(1)
    flat = variable[0].flatten(1)
    covariance, target = torch.cov(flat, correction=0), torch.cov(wanted, correction=0)
    noise = NOISE_SHARE * torch.linalg.eigvalsh(target)[-1] * torch.eye(6)
    roots = torch.linalg.eigvals((target + noise) @ (covariance + noise)).real.sqrt().sum()
    means = (flat.mean(1) - wanted.mean(1)).square().sum()
    power = wanted.square().sum(0).mean()
    total = (means + torch.trace(covariance + target + 2 * noise) - 2 * roots) / power
    (expected,) = torch.autograd.grad(total, variable)
    features = image.requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(statistic("moments"), features, style), features)
    assert relative_error(gradient, expected) < 1e-3


def sliced_by_loop(image: Columns, style: Columns, basis: Columns) -> float:
    """Each direction's sorted values against the style's quantiles at the same levels."""
    each = []
    for direction in basis:
        values, wanted = np.sort(direction @ image), np.sort(direction @ style)
        levels, known = ((np.arange(len(sequence)) + 0.5) / len(sequence) for sequence in (values, wanted))
        each.append(((values - np.interp(levels, known, wanted)) ** 2).mean())
    return float(np.mean(each) / ((basis @ style) ** 2).mean())


def directions(chosen: Statistic[Any, Any], channels: int) -> Columns:
    """What a statistic projects on: where it sends the unit vectors."""
    return chosen.measure(torch.eye(channels).view(1, channels, 1, channels)).projections.double().numpy()


@pytest.mark.parametrize("rows", [1, 255, 256, 20_000])
def test_bfloat16_features_are_added_up_in_float32(rows: int):
    """Means and products are far nearer to float64 than bfloat16 is, whatever does not fill a block included."""
    features = feature_map(3, 16, rows, 1).bfloat16().contiguous(memory_format=torch.channels_last)
    measured = statistic("moments").measure(features)
    values = features[0].flatten(1).double()
    assert relative_error(measured.mean, values.mean(1)) < 1.5e-3
    assert relative_error(measured.second, values @ values.T / rows) < (2e-3 if rows < 20_000 else 4e-4)
    assert relative_error(statistic("gram").measure(features).matrix * 16, measured.second) < 1e-6


@pytest.mark.parametrize("inside", [1.0, "a ramp"])
@pytest.mark.parametrize("outside", [0.0, 0.31, 0.48, 0.74])
def test_a_part_of_bfloat16_features_is_as_near_to_float64(inside: float | str, outside: float):
    features = feature_map(3, 16, 600, 1).bfloat16().contiguous(memory_format=torch.channels_last)
    mask = torch.full((600,), outside)
    mask[77:333] = torch.linspace(0.1, 1, 256) if inside == "a ramp" else 1.0
    weights = mask / mask.mean()
    values = features[0].flatten(1).double()
    measured = statistic("moments").measure(features, weights)
    assert relative_error(measured.mean, (values * weights).mean(1)) < 2e-3
    assert relative_error(measured.second, (values * weights) @ values.T / 600) < 2e-3
    roots, scale = losses.roots_of(weights, torch.bfloat16)
    assert float(roots.double().square().sum() * scale) == pytest.approx(600)
    gram = statistic("gram").measure(features, weights)
    assert relative_error(gram.matrix * 16, measured.second) < 1e-6


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["gram", "moments"])
def test_bfloat16_gradients_are_those_of_float32_rounded(name: str, weighted: bool):
    image, style = feature_map(5, height=40, width=9).bfloat16(), feature_map(6)
    weights = torch.linspace(0, 2, 360) if weighted else None
    found, wanted = image.clone().requires_grad_(True), image.float().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(statistic(name), found, style, weights), found)
    (expected,) = torch.autograd.grad(loss(statistic(name), wanted, style, weights), wanted)
    assert gradient.dtype == torch.bfloat16
    assert relative_error(gradient.float(), expected) < 1e-2


@pytest.mark.parametrize("size", [(9, 7), (8, 11), (3, 2)])
def test_sliced_compares_sorted_projections(size: tuple[int, int]):
    chosen, image = statistic("sliced"), feature_map(1)
    style = feature_map(2, height=size[0], width=size[1])
    expected = sliced_by_loop(columns(image), columns(style), directions(chosen, 6))
    assert float(loss(chosen, image, style)) == pytest.approx(expected, rel=2e-2 if size == (8, 11) else 1e-4)


def test_the_directions_are_a_basis_that_follows_from_the_seed():
    basis = directions(statistic("sliced", seed=3), 6)
    assert basis @ basis.T == pytest.approx(np.eye(6), abs=1e-5)
    assert np.array_equal(basis, directions(statistic("sliced", seed=3), 6))
    assert np.abs(basis - directions(statistic("sliced", seed=4), 6)).max() > 0.1


@pytest.mark.parametrize("name", STATISTICS)
def test_gradients_are_slopes(name: str):
    """Along a random direction, by central differences of the float32 loss."""
    chosen, image, style = statistic(name), feature_map(1), feature_map(2)
    way = torch.randn(image.shape, generator=torch.Generator().manual_seed(9))
    features = image.requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(chosen, features, style), features)
    with torch.no_grad():
        slope = (loss(chosen, image + 0.02 * way, style) - loss(chosen, image - 0.02 * way, style)) / 0.04
    assert float(slope) == pytest.approx(float((gradient * way).sum()), rel=2e-2)


@pytest.mark.parametrize("name", STATISTICS)
def test_a_style_matches_itself_wherever_its_features_are(name: str):
    chosen, style = statistic(name), feature_map(2)
    shuffled = style.flatten(2)[:, :, torch.randperm(63, generator=torch.Generator().manual_seed(0))].view_as(style)
    assert float(loss(chosen, shuffled, style)) == pytest.approx(0.0, abs=1e-5)
    features = shuffled.requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(chosen, features, style), features)
    assert gradient.abs().max() < 1e-4


@pytest.mark.parametrize("block", [1, 100])
def test_sliced_is_the_same_however_few_directions_are_looked_at_together(block: int, monkeypatch: pytest.MonkeyPatch):
    """To the bit: one at a time, some, or all."""
    chosen, maps = statistic("sliced"), [feature_map(seed).requires_grad_(True) for seed in range(3)]

    def found() -> tuple[Tensor, ...]:
        target = chosen.blend([chosen.measure(one.detach()) for one in maps[1:]], [0.3, 0.7])
        distance = chosen.distance(chosen.measure(maps[0]), target)
        return (*target, distance, *torch.autograd.grad(distance, maps[0]))

    together = found()
    monkeypatch.setattr(wasserstein, "BLOCK", block)
    assert all(torch.equal(one, other) for one, other in zip(found(), together, strict=True))


@pytest.mark.parametrize("name", ["moments", "sliced"])
def test_a_map_of_zeros_is_at_distance_one(name: str):
    style = feature_map(2)
    assert float(loss(statistic(name), torch.zeros_like(style), style)) == pytest.approx(1.0, rel=0.15)
    assert float(loss(statistic(name), torch.zeros_like(style), 100 * style)) == pytest.approx(1.0, rel=0.15)


@pytest.mark.parametrize("name", STATISTICS)
def test_styles_are_pooled_by_share_and_not_by_size(name: str):
    """Shares of 1 to 3 of two maps are one map with the first once and the second three times, per position."""
    chosen, image, first, second = statistic(name), feature_map(1), feature_map(2), feature_map(3, height=3, width=3)
    repeated = [one.flatten(2).repeat(1, 1, times) for one, times in ((first, 1), (second, 21))]
    pool = torch.cat(repeated, 2)[:, :, None]
    target = chosen.blend([chosen.measure(first), chosen.measure(second)], [0.25, 0.75])
    blended = chosen.distance(chosen.measure(image), target)
    expected = loss(chosen, image, pool)
    assert float(blended) == pytest.approx(float(expected), rel=2e-2 if name == "sliced" else 1e-4)
    alone = chosen.distance(
        chosen.measure(image), chosen.blend([chosen.measure(first), chosen.measure(second)], [1, 0])
    )
    assert float(alone) == pytest.approx(float(loss(chosen, image, first)), rel=1e-4)


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("side", ["image", "style"])
def test_a_position_of_weight_two_counts_as_two_and_one_of_weight_zero_not_at_all(name: str, side: str):
    chosen, maps = statistic(name), {"image": feature_map(1), "style": feature_map(2)}
    counts = torch.randint(0, 3, (63,), generator=torch.Generator().manual_seed(4))
    repeated = maps[side].flatten(2).repeat_interleave(counts, 2)[:, :, None]
    expected = loss(chosen, **{**maps, side: repeated})
    spoilt = torch.where(counts == 0, 1e3, maps[side].flatten(2)).view_as(maps[side])
    weighted = loss(chosen, **{**maps, side: spoilt}, **{f"{side}_weights": counts / counts.float().mean()})
    assert float(weighted) == pytest.approx(float(expected), rel=3e-2 if name == "sliced" else 1e-4)


@pytest.mark.parametrize("name", ["moments", "sliced"])
def test_a_style_without_features_is_survived(name: str):
    image = feature_map(1).requires_grad_(True)
    value = loss(statistic(name), image, torch.zeros(1, 6, 1, 1))
    (gradient,) = torch.autograd.grad(value, image)
    assert value.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", STATISTICS)
def test_every_layer_pulls_by_its_weight(
    backbone: Callable[[torch.dtype], Backbone], photo: Pixels, texture: Pixels, name: str
):
    """The style loss is the weighted sum of the layers' own."""
    layers, image = {"relu1_1": 1.0, "relu2_1": 3.0}, noisy(photo)

    def style_loss(style_layers: dict[str, float]) -> float:
        options = StylizeOptions(style_statistic=name, style_layers=style_layers, strength=None, content_layers={})
        objective = Objective(backbone(torch.float32), as_image(photo), [as_image(texture)], options, [1.0])
        return objective.evaluate(image).losses["style"]

    assert style_loss(layers) == pytest.approx(sum(weight * style_loss({tap: 1.0}) for tap, weight in layers.items()))


@pytest.mark.parametrize("name", ["moments", "sliced"])
def test_strength_balances_them_too(
    backbone: Callable[[torch.dtype], Backbone], photo: Pixels, texture: Pixels, checks: Pixels, name: str
):
    options = StylizeOptions(**SHALLOW, style_statistic=name, strength=1.0, tv_weight=0.0, box_weight=0.0)
    sizes = []
    for content, style in ((photo, texture), (texture, checks), (checks, photo)):
        objective = Objective(backbone(torch.float32), as_image(content), [as_image(style)], options, [1.0])
        sizes.append(objective.evaluate(at_balance(content)).gradient.square().mean().sqrt().item())
    assert sizes == pytest.approx([PLAIN.style_levels[name]] * 3, rel=0.1)


@pytest.mark.parametrize("name", ["moments", "sliced"])
def test_a_run_gets_nearer_to_the_style_and_resumes_in_the_same_bits(
    engine: Engine, photo: Pixels, texture: Pixels, checks: Pixels, name: str
):
    options = quick(style_statistic=name, strength=0.8, iterations=5, seed=7)
    session = engine.start(photo, shares_of([texture, checks], [1, 3]), options)
    first = steps(engine, session, 2)[0]
    state = checkpoint.loads(checkpoint.dumps(session.state_dict()))
    last = finish(engine, session)[-1]
    resumed = engine.resume(state, photo, [Style(texture), Style(checks)])
    assert finish(engine, resumed)[-1] == last
    assert np.array_equal(resumed.image(), session.image())
    assert last.losses["style"] < 0.7 * first.losses["style"]


@pytest.mark.parametrize("statistic", ["gram", "moments"])
def test_a_second_derivative_is_refused(statistic: str):
    """Of what is worked out by hand, which it would take for a constant."""
    features = torch.rand(1, 16, 6, 6).requires_grad_(True)
    measured = make_statistic(StylizeOptions(style_statistic=statistic)).measure(features)
    total = sum(tensor.square().sum() for tensor in measured)
    (gradient,) = torch.autograd.grad(total, features, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
