"""L-BFGS against the two-loop recursion in float64, Adam against torch's."""

from collections.abc import Callable, Sequence

import pytest
import torch
from reference import relative_error
from torch import Tensor

from nst_engine import StylizeOptions
from nst_engine.lbfgs import LBFGS, LENGTHENING, FourierPreconditioner
from nst_engine.optimizers import Adam, Optimizer, make_optimizer

SHAPE = torch.Size((1, 3, 5, 7))
CPU = torch.device("cpu")
HISTORY = 6

Pair = tuple[Tensor, Tensor]


class Quadratic:
    """1/2 (x - minimum)' A (x - minimum), with a random A whose eigenvalues go from 1 to 100."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        size = SHAPE.numel()
        basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
        self.matrix = basis @ torch.diag(torch.logspace(0, 2, size, dtype=torch.float64)) @ basis.T
        self.minimum = 127 + 30 * torch.randn(SHAPE, generator=generator)
        self.start = self.minimum + 20 * torch.randn(SHAPE, generator=generator)

    def __call__(self, image: Tensor) -> tuple[float, Tensor]:
        """The value and the gradient."""
        offset = (image - self.minimum).double().flatten()
        slope = self.matrix @ offset
        return float(offset @ slope) / 2, slope.float().view(SHAPE)


@pytest.fixture(scope="module")
def preconditioner() -> Tensor:
    """The engine's preconditioner as a matrix in float64."""
    apply = FourierPreconditioner(SHAPE, CPU)
    return torch.stack([apply(unit) for unit in torch.eye(SHAPE.numel())], 1).double()


def two_loop(gradient: Tensor, pairs: Sequence[Pair], initial: Callable[[Tensor], Tensor]) -> Tensor:
    """The direction -H g of Nocedal and Wright, algorithm 7.4; pairs (s, y), oldest first."""
    residual, shares = gradient.clone(), []
    for step, change in reversed(pairs):
        shares.append((step @ residual) / (change @ step))
        residual -= shares[-1] * change
    result = initial(residual)
    for (step, change), share in zip(pairs, reversed(shares), strict=True):
        result += (share - (change @ result) / (change @ step)) * step
    return -result


def exact(tensor: Tensor) -> Tensor:
    return tensor.double().flatten()


def walk(optimizer: Optimizer, function: Quadratic, count: int) -> list[Pair]:
    """The first `count` iterates and their gradients."""
    image, (loss, gradient) = function.start, function(function.start)
    visited = [(image, gradient)]
    for _ in range(count - 1):
        following = optimizer.propose(image, loss, gradient, 1.0)
        loss, new_gradient = function(following)
        optimizer.accept(image, gradient, following, new_gradient)
        image, gradient = following, new_gradient
        visited.append((image, gradient))
    return visited


def lbfgs(history: int = HISTORY) -> Optimizer:
    return make_optimizer(StylizeOptions(history_size=history), SHAPE, CPU)


def test_the_preconditioner_is_an_inverse_hessian(preconditioner: Tensor):
    """Symmetric and positive definite, and it favours low frequencies."""
    assert torch.allclose(preconditioner, preconditioner.T, atol=1e-6)
    assert torch.linalg.eigvalsh(preconditioner).min() > 0.1
    apply = FourierPreconditioner(torch.Size((1, 3, 16, 16)), CPU)
    gains = []
    for waves in (0, 1, 4, 8):
        wave = torch.cos(2 * torch.pi * waves * torch.arange(16) / 16).expand(3, 16, 16).flatten()
        filtered = apply(wave)
        gains.append(float(filtered @ wave / (wave @ wave)))
        assert torch.allclose(filtered, gains[-1] * wave, atol=1e-4)
    assert gains[0] == pytest.approx(gains[1], rel=1e-4)
    assert gains[1] > gains[2] > gains[3]


def test_the_first_step_is_polyaks(preconditioner: Tensor):
    function = Quadratic()
    loss, gradient = function(function.start)
    direction = preconditioner @ exact(gradient)
    expected = exact(function.start) - loss / (exact(gradient) @ direction) * direction
    proposal = lbfgs().propose(function.start, loss, gradient, 1.0)
    assert relative_error(proposal - function.start, expected - exact(function.start)) < 1e-4


def test_lbfgs_is_the_two_loop_recursion(preconditioner: Tensor):
    """At every iterate of a walk long enough to overwrite the oldest pairs twice."""
    function, optimizer = Quadratic(), lbfgs()
    image, (loss, gradient) = function.start, function(function.start)
    pairs: list[Pair] = []
    for turn in range(3 * HISTORY):
        following = optimizer.propose(image, loss, gradient, 1.0)
        if pairs:
            step, change = pairs[-1]
            scale = LENGTHENING * (step @ change) / (change @ preconditioner @ change)
            expected = two_loop(exact(gradient), pairs, lambda r, scale=scale: scale * preconditioner @ r)  # type: ignore[misc]
            assert relative_error(following - image, expected) < 1e-3, turn
        loss, new_gradient = function(following)
        optimizer.accept(image, gradient, following, new_gradient)
        pairs = [*pairs, (exact(following - image), exact(new_gradient - gradient))][-HISTORY:]
        image, gradient = following, new_gradient


def test_lbfgs_converges_on_a_quadratic():
    function = Quadratic()
    losses = [function(image)[0] for image, _ in walk(lbfgs(20), function, 60)]
    assert losses[-1] < 1e-5 * losses[0]
    plain = [function(image)[0] for image, _ in walk(lbfgs(1), function, 60)]
    assert losses[-1] < plain[-1]


@pytest.mark.parametrize("spoilt", ["negative", "zero", "tiny", "nan"])
def test_pairs_of_bad_curvature_are_skipped(spoilt: str):
    function, optimizer = Quadratic(), lbfgs()
    image, gradient = walk(optimizer, function, 4)[-1]
    loss, _ = function(image)
    before = optimizer.propose(image, loss, gradient, 1.0)
    step = torch.ones(SHAPE)
    change = {
        "negative": -step,
        "zero": torch.zeros(SHAPE),
        "tiny": 1e-7 * step,
        "nan": torch.full(SHAPE, torch.nan),
    }[spoilt]
    if spoilt == "tiny":
        change[..., ::2] += 1.0
        change[..., 1::2] -= (change[..., ::2].sum() / change[..., 1::2].numel()).item()
    optimizer.accept(image, gradient, image + step, gradient + change)
    assert relative_error(optimizer.propose(image, loss, gradient, 1.0) - image, before - image) < 1e-5


def test_the_step_factor_and_the_learning_rate_scale_the_step():
    function = Quadratic()
    loss, gradient = function(function.start)
    for options, default in ((StylizeOptions(), 1.0), (StylizeOptions(optimizer="adam"), 10.0)):
        whole = make_optimizer(options, SHAPE, CPU).propose(function.start, loss, gradient, 1.0) - function.start
        half = make_optimizer(options, SHAPE, CPU).propose(function.start, loss, gradient, 0.5) - function.start
        assert torch.allclose(half, whole / 2, rtol=1e-3, atol=1e-4)
        tripled = StylizeOptions(optimizer=options.optimizer, learning_rate=3 * default)
        triple = make_optimizer(tripled, SHAPE, CPU).propose(function.start, loss, gradient, 1.0) - function.start
        assert torch.allclose(triple, 3 * whole, rtol=1e-3, atol=1e-4)


def test_a_restarted_lbfgs_is_a_new_one():
    function, optimizer = Quadratic(), lbfgs()
    image, gradient = walk(optimizer, function, 5)[-1]
    loss, _ = function(image)
    optimizer.restart()
    assert torch.equal(
        optimizer.propose(image, loss, gradient, 1.0), lbfgs().propose(image, loss, gradient, 1.0)
    )  # fmt: skip


def test_adam_is_torchs_adam():
    function, optimizer = Quadratic(), Adam(SHAPE, CPU, learning_rate=2.0)
    variable = function.start.clone().requires_grad_(True)
    torchs = torch.optim.Adam([variable], lr=2.0, betas=Adam.BETAS, eps=Adam.EPSILON)
    for turn, (image, gradient) in enumerate(walk(optimizer, function, 21)):
        assert torch.allclose(image, variable, rtol=1e-5, atol=1e-4), turn
        variable.grad = gradient
        torchs.step()


def test_a_dropped_proposal_leaves_adam_as_it_was():
    function = Quadratic()
    loss, gradient = function(function.start)
    one, other = Adam(SHAPE, CPU, 2.0), Adam(SHAPE, CPU, 2.0)
    one.propose(function.start, loss, gradient, 1.0)
    assert torch.equal(walk(one, function, 5)[-1][0], walk(other, function, 5)[-1][0])


@pytest.mark.parametrize("name", ["lbfgs", "adam", "adagrad", "gradient_descent"])
def test_a_loaded_state_goes_on_alike(name: str):
    options = StylizeOptions(optimizer=name, history_size=3)
    function, first = Quadratic(), make_optimizer(options, SHAPE, CPU)
    image, gradient = walk(first, function, 6)[-1]
    state = first.tensors()
    kept = {key: tensor.clone() for key, tensor in state.items()}
    loss, _ = function(image)
    expected = first.propose(image, loss, gradient, 1.0)
    first.accept(image, gradient, expected, function(expected)[1])
    assert all(torch.equal(state[key], kept[key]) for key in kept)
    second = make_optimizer(options, SHAPE, CPU)
    second.load(state)
    assert torch.equal(second.propose(image, loss, gradient, 1.0), expected)
    assert second.nbytes == first.nbytes > 0


def test_the_options_choose_the_optimizer():
    assert isinstance(make_optimizer(StylizeOptions(optimizer="lbfgs"), SHAPE, CPU), LBFGS)
    assert isinstance(make_optimizer(StylizeOptions(optimizer="adam"), SHAPE, CPU), Adam)
    assert lbfgs(4).nbytes == 4 * 2 * SHAPE.numel() * 4
