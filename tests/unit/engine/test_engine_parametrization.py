"""What is optimised: pixels, Fourier coefficients against numpy's, and the weights of a network."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from engine_runs import Pixels, as_image, finish, noisy, quick, steps
from torch import Tensor

from nst_engine import Engine, OptionError, Session, Style, StylizeOptions, checkpoint
from nst_engine.backbone import Backbone
from nst_engine.evaluation import Evaluation
from nst_engine.image_network import BYTES_PER_PIXEL, ImageNetwork
from nst_engine.objective import Objective
from nst_engine.optimizers import make_optimizer
from nst_engine.parametrization import Fourier, Parametrization, hartley, make_parametrization, pulled_back

CPU = torch.device("cpu")
SIZES = [(6, 8), (5, 7), (1, 9), (6, 5)]
NAMES = ["pixels", "fourier", "network"]
OPTIMIZERS = ["lbfgs", "adam", "adagrad", "gradient_descent"]


def made(name: str, size: tuple[int, int], **options: Any) -> Parametrization:
    return make_parametrization(StylizeOptions(parametrization=name, **options), size, CPU)


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def numpy_weights(height: int, width: int) -> np.ndarray[Any, Any]:
    """1/f with f in cycles per pixel, f = 0 as if one cycle fitted the long side; the mean square is 1."""
    weights = np.empty((height, width))
    for row, column in np.ndindex(height, width):
        frequency = math.hypot(np.fft.fftfreq(height)[row], np.fft.fftfreq(width)[column])
        weights[row, column] = 1 / max(frequency, 1 / max(height, width))
    return weights / np.sqrt((weights**2).mean())


@pytest.mark.parametrize("size", SIZES)
def test_the_transform_is_real_minus_imaginary_part_of_numpys(size: tuple[int, int]):
    picture = seeded(1, 3, *size)
    spectrum = np.fft.fft2(picture.double().numpy(), norm="ortho")
    np.testing.assert_allclose(hartley(picture).numpy(), spectrum.real - spectrum.imag, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_the_basis_is_orthonormal_and_its_own_inverse(size: tuple[int, int]):
    count = math.prod(size)
    basis = hartley(torch.eye(count, dtype=torch.float64).view(count, *size)).flatten(1)
    torch.testing.assert_close(basis @ basis.T, torch.eye(count, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(basis, basis.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_a_coefficient_is_a_weighted_wave(size: tuple[int, int]):
    height, width = size
    rows, columns = np.indices(size)
    weights = numpy_weights(height, width)
    for row, column in {(0, 0), (0, 1), (height - 1, 2), (height // 2, width // 2)}:
        parameters = torch.zeros(1, 3, height, width)
        parameters[0, 1, row, column] = 100.0
        phase = 2 * np.pi * (row * rows / height + column * columns / width)
        wave = 100 * weights[row, column] * (np.cos(phase) + np.sin(phase)) / math.sqrt(height * width)
        image = Fourier(size, CPU).image(parameters).numpy()
        np.testing.assert_allclose(image[0, 1], 127.5 + wave, atol=1e-3)
        np.testing.assert_allclose(image[0, [0, 2]], 127.5, atol=1e-3)


def test_equal_steps_in_all_coefficients_are_as_large_in_pixels():
    size = (20, 31)
    fourier = Fourier(size, CPU)
    parameters = fourier.of(127.5 + 40 * seeded(1, 3, *size))
    moved = fourier.image(parameters + 10 * seeded(1, 3, *size, seed=1).sign()) - fourier.image(parameters)
    assert moved.square().mean().sqrt().item() == pytest.approx(10, rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(64, 96), (33, 17), (16, 320), (1, 1)])
def test_a_picture_comes_back_from_its_parameters(name: str, size: tuple[int, int]):
    image = 127.5 + 60 * seeded(1, 3, *size)
    parametrization = made(name, size)
    assert (parametrization.image(parametrization.of(image)) - image).abs().max() < 1e-3


def evaluated(objective: Objective, parametrization: Parametrization, parameters: Tensor) -> Evaluation:
    variable = parameters.detach().requires_grad_(True)
    image = parametrization.image(variable)
    return pulled_back(objective.evaluate(image), image, variable)


def test_a_fourier_gradient_is_the_weighted_transform_of_the_pixels_gradient(
    backbone: Callable[[torch.dtype], Backbone], photo: Pixels, texture: Pixels
):
    objective = Objective(backbone(torch.float32), as_image(photo), [as_image(texture)], quick(strength=None), [1.0])
    image, fourier = noisy(photo), Fourier((64, 96), CPU)
    evaluation = evaluated(objective, fourier, fourier.of(image))
    plain = objective.evaluate(image)
    spectrum = np.fft.fft2(plain.gradient.double().numpy(), norm="ortho")
    expected = numpy_weights(64, 96) * (spectrum.real - spectrum.imag)
    assert evaluation.total == pytest.approx(plain.total, rel=1e-4)
    assert np.abs(evaluation.gradient.numpy() - expected).max() < 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_differences_of_the_loss(
    backbone: Callable[[torch.dtype], Backbone], photo: Pixels, texture: Pixels, name: str
):
    """Along the gradient itself, from parameters that are not those of the start."""
    options = quick(strength=None, style_weight=100.0, tv_weight=0.0)
    objective = Objective(backbone(torch.float32), as_image(photo), [as_image(texture)], options, [1.0])
    parametrization = made(name, (64, 96))
    start = parametrization.of(as_image(photo))
    parameters = start + (2.5 if name == "network" else 5.0) * seeded(*start.shape, seed=3)
    gradient = evaluated(objective, parametrization, parameters).gradient
    assert gradient.shape == parameters.shape
    direction = gradient / gradient.norm()
    reach = 0.01 if name == "network" else 20.0
    ahead, behind = (
        evaluated(objective, parametrization, parameters + side * reach * direction).total for side in (1, -1)
    )
    assert (ahead - behind) / (2 * reach) == pytest.approx(gradient.norm().item(), rel=0.03)


def test_a_networks_first_weights_are_seeded_and_add_nothing():
    picture = 127.5 + 60 * seeded(1, 3, 20, 30)
    first, again, other = (ImageNetwork(seed) for seed in (1, 1, 2))
    assert torch.equal(first.initial_weights(), again.initial_weights())
    assert not torch.equal(first.initial_weights(), other.initial_weights())
    assert not first(picture, first.initial_weights()).any()
    weights = first.initial_weights() + 6 * seeded(first.initial_weights().numel())
    assert first(picture, weights).std() > 1
    assert torch.equal(first(picture, weights), other(picture, weights))


def test_a_network_is_small_and_its_maps_take_what_is_said():
    network, height, width = ImageNetwork(0), 64, 96
    weights = network.initial_weights().requires_grad_(True)
    assert weights.numel() < 100_000
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        network(seeded(1, 3, height, width), weights)
    maps = sum(kept.values()) - weights.nbytes
    assert 0.9 * BYTES_PER_PIXEL < maps / (height * width) < BYTES_PER_PIXEL


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_lowers_the_loss_of_every_parametrization(
    engine: Engine, photo: Pixels, texture: Pixels, name: str, optimizer: str
):
    options = quick(parametrization=name, optimizer=optimizer, iterations=8)
    session = engine.start(photo, [Style(texture)], options)
    start = session.image()
    reports = finish(engine, session)
    assert reports[-1].total_loss < 0.97 * reports[0].total_loss
    assert reports[-1].losses["style"] < reports[0].losses["style"]
    assert session.image().shape == start.shape
    assert not np.array_equal(session.image(), start)


@pytest.mark.parametrize("name", ["fourier", "network"])
def test_a_run_begins_with_the_same_picture_as_in_pixels(engine: Engine, photo: Pixels, texture: Pixels, name: str):
    first = {
        each: engine.start(photo, [Style(texture)], quick(parametrization=each, init="recolored")).image().astype(int)
        for each in ("pixels", name)
    }
    assert np.abs(first[name] - first["pixels"]).max() <= 1


@pytest.mark.parametrize("name", ["fourier", "network"])
def test_the_next_scale_begins_where_the_last_one_ended(engine: Engine, photo: Pixels, texture: Pixels, name: str):
    options = quick(parametrization=name, size=128, scales=2, iterations=4)
    session = engine.start(photo, [Style(texture)], options)
    steps(engine, session, 2)
    before = session.image().astype(float)
    calm = engine.resume(
        replace(session.state_dict(), options=replace(options, learning_rate=1e-6)), photo, [Style(texture)]
    )
    steps(engine, calm, 1)
    after = calm.image().astype(float)
    assert after.shape == (85, 128, 3)
    halved = after[:84].reshape(42, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(halved[2:-2] - before[2:40]).mean() < 6


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
@pytest.mark.parametrize("name", ["fourier", "network"])
def test_a_cut_run_ends_in_the_same_bits(engine: Engine, photo: Pixels, texture: Pixels, name: str, optimizer: str):
    options = quick(parametrization=name, optimizer=optimizer, size=64, scales=2, iterations=6, seed=4)
    whole = engine.start(photo[:40], [Style(texture)], options)
    ends = []
    for cut in (0, 2, 3, 4):  # the second scale begins at 3
        steps(engine, whole, cut - whole.iteration)
        resumed = revived(engine, whole, photo[:40], texture)
        finish(engine, resumed)
        ends.append(resumed)
    finish(engine, whole)
    assert all(same(resumed, whole) for resumed in ends)


def revived(engine: Engine, session: Session, content: Pixels, texture: Pixels) -> Session:
    state = checkpoint.loads(checkpoint.dumps(session.state_dict()))
    return engine.resume(state, content, [Style(texture)])


def same(left: Session, right: Session) -> bool:
    one, other = left.state_dict(), right.state_dict()
    tensors = all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors | other.tensors)
    return tensors and replace(one, tensors={}) == replace(other, tensors={})


@pytest.mark.parametrize("name", NAMES)
def test_a_state_needs_the_picture_it_was_made_with(engine: Engine, photo: Pixels, texture: Pixels, name: str):
    session = engine.start(photo, [Style(texture)], quick(parametrization=name))
    with pytest.raises(OptionError, match="64x64 where the checkpoint has 64x43") as caught:
        revived(engine, session, photo[:, :64], texture)
    assert caught.value.field == "content"


@pytest.mark.parametrize("name", ["fourier", "network"])
def test_a_diverging_step_is_undone(engine: Engine, photo: Pixels, texture: Pixels, name: str):
    options = quick(parametrization=name, optimizer="adam", learning_rate=1000.0, size=48, iterations=12)
    session = engine.start(photo, [Style(texture)], options)
    start = session.image()
    steps(engine, session, 1)
    assert np.array_equal(session.image(), start)
    assert session.state_dict().step < 1
    assert all(math.isfinite(report.total_loss) for report in finish(engine, session))
    assert not np.array_equal(session.image(), start)


def test_a_network_does_not_start_from_noise():
    with pytest.raises(OptionError, match="noise would show through") as caught:
        StylizeOptions(parametrization="network", init="noise")
    assert caught.value.field == "parametrization"
    assert StylizeOptions(parametrization="fourier", init="noise").init == "noise"


def test_a_network_beyond_the_memory_budget_is_refused(engine: Engine, photo: Pixels, texture: Pixels):
    small = Engine("cpu", threads=1, memory_budget=BYTES_PER_PIXEL * 64 * 43)
    small._backbones = engine._backbones
    shallow = {"content_layers": {"relu1_1": 1.0}, "style_layers": {"relu1_1": 1.0}}
    small.start(photo, [Style(texture)], quick(parametrization="network", **shallow))
    with pytest.raises(OptionError, match="as a whole, and its maps at 66x44") as caught:
        small.start(photo, [Style(texture)], quick(parametrization="network", size=66, **shallow))
    assert caught.value.field == "parametrization"


@pytest.mark.parametrize("name", ["fourier", "network"])
def test_weight_decay_pulls_parameters_to_zero(name: str):
    options = StylizeOptions(parametrization=name, optimizer="gradient_descent", weight_decay=0.5, learning_rate=0.2)
    parameters = seeded(50)
    optimizer = make_optimizer(options, parameters.shape, CPU)
    proposal = optimizer.propose(parameters, 1.0, torch.zeros_like(parameters), 1.0)
    torch.testing.assert_close(proposal, 0.9 * parameters)


def test_fourier_coefficients_of_zero_are_mid_grey():
    assert torch.equal(Fourier((6, 4), CPU).image(torch.zeros(1, 3, 6, 4)), torch.full((1, 3, 6, 4), 127.5))
