"""Adagrad and gradient descent against those of torch in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine_runs import DEEPER, Pixels, finish, quick, steps
from torch import Tensor

from nst_engine import Engine, Style, StylizeOptions, checkpoint
from nst_engine.optimizers import Optimizer, make_optimizer

SHAPE = torch.Size((1, 3, 5, 4))
CPU = torch.device("cpu")
STEPS = 20
MID_GREY = 127.5
RATE = 0.7

Made = Callable[[list[Tensor]], torch.optim.Optimizer]
CASES: dict[str, tuple[dict[str, Any], Made]] = {
    "Adagrad": ({"optimizer": "adagrad"}, lambda p: torch.optim.Adagrad(p, RATE)),
    "plain gradient descent": (
        {"optimizer": "gradient_descent", "momentum": 0.0},
        lambda p: torch.optim.SGD(p, RATE),
    ),
    "momentum": (
        {"optimizer": "gradient_descent", "momentum": 0.8},
        lambda p: torch.optim.SGD(p, RATE, momentum=0.8),
    ),
    "weight decay": (
        {"optimizer": "gradient_descent", "momentum": 0.0, "weight_decay": 0.05},
        lambda p: torch.optim.SGD(p, RATE, weight_decay=0.05),
    ),
    "momentum and weight decay": (
        {"optimizer": "gradient_descent", "momentum": 0.9, "weight_decay": 0.02},
        lambda p: torch.optim.SGD(p, RATE, momentum=0.9, weight_decay=0.02),
    ),
}


def seeded(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


START, GOAL, CURVATURE = MID_GREY + 60 * seeded(1), MID_GREY + 50 * seeded(2), 0.05 + seeded(3).abs()


def loss(image: Tensor) -> Tensor:
    """Convex, and neither quadratic nor the same for any two pixels."""
    return (CURVATURE * torch.log(torch.cosh((image - GOAL) / 20))).sum() * 20


def slope(image: Tensor) -> Tensor:
    return CURVATURE * torch.tanh((image - GOAL) / 20)


def advance(optimizer: Optimizer, image: Tensor, count: int) -> Tensor:
    for _ in range(count):
        gradient = slope(image)
        proposal = optimizer.propose(image, float(loss(image)), gradient, 1.0)
        optimizer.accept(image, gradient, proposal, slope(proposal))
        image = proposal
    return image


def made(given: dict[str, Any]) -> Optimizer:
    return make_optimizer(StylizeOptions(learning_rate=RATE, **given), SHAPE, CPU)


@pytest.mark.parametrize("case", CASES)
def test_the_path_is_that_of_torch(case: str):
    given, reference = CASES[case]
    # torch decays towards 0: its parameter is the deviation from mid-grey.
    deviation = (START - MID_GREY).double().requires_grad_(True)
    theirs, ours, image = reference([deviation]), made(given), START
    for _ in range(STEPS):
        theirs.zero_grad()
        loss(deviation + MID_GREY).backward()
        theirs.step()
        image = advance(ours, image, 1)
        torch.testing.assert_close(image.double() - MID_GREY, deviation.detach(), rtol=0, atol=1e-3)
    assert (image - START).abs().max() > 1


@pytest.mark.parametrize("case", CASES)
def test_a_proposal_that_is_not_taken_leaves_no_trace(case: str):
    given, _ = CASES[case]
    disturbed, calm = made(given), made(given)
    image = advance(disturbed, START, 3)
    disturbed.propose(image, 1.0, 100 * slope(image), 0.25)
    assert torch.equal(advance(disturbed, image, 3), advance(calm, advance(calm, START, 3), 3))


@pytest.mark.parametrize("case", CASES)
def test_a_smaller_step_goes_the_same_way(case: str):
    given, _ = CASES[case]
    optimizer = made(given)
    image = advance(optimizer, START, 2)
    whole, quarter = (optimizer.propose(image, 1.0, slope(image), step) - image for step in (1.0, 0.25))
    torch.testing.assert_close(quarter, whole / 4, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", ["Adagrad", "momentum and weight decay"])
def test_a_new_objective_is_met_without_the_memory_of_the_old(case: str):
    given, _ = CASES[case]
    restarted = made(given)
    image = advance(restarted, START, 5)
    restarted.restart()
    assert torch.equal(advance(restarted, image, 3), advance(made(given), image, 3))


@pytest.mark.parametrize("optimizer", ["adagrad", "gradient_descent"])
def test_each_gets_on_with_its_own_rate_and_resumes_bit_for_bit(
    engine: Engine, photo: Pixels, texture: Pixels, optimizer: str
):
    options, style = (
        quick(**DEEPER, optimizer=optimizer, strength=0.8, iterations=8, weight_decay=0.001),
        [Style(texture)],
    )
    whole = engine.start(photo, style, options)
    reports = finish(engine, whole)
    assert reports[-1].total_loss < 0.9 * reports[0].total_loss
    cut = engine.start(photo, style, options)
    steps(engine, cut, 4)
    resumed = engine.resume(checkpoint.loads(checkpoint.dumps(cut.state_dict())), photo, style)
    assert finish(engine, resumed) == reports[4:]
    assert torch.equal(resumed.state_dict().tensors["image"], whole.state_dict().tensors["image"])
