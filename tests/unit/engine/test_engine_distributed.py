"""What processes compute together is what one computes alone, and the same in all of them."""

from pathlib import Path

import numpy as np
import pytest
from engine_runs import Pixels
from PIL import Image
from shared_runs import CASES, Arrays, Backbones, Process, together

from nst_engine.distributed import Processes, digest

LOSSES = {"content", "style", "tv", "box", "detail", "total"}
Outcomes = dict[str, list[Arrays]]
EVALUATIONS = ("gram", "moments", "masks", "a hole", "no style", "tiny", "small tiles", "other layout", "bfloat16")


@pytest.fixture(scope="module")
def pictures(content_path: Path, style_path: Path) -> tuple[Pixels, Pixels]:
    """A photograph, 160 x 128, and a texture, 128 x 112."""
    paths = zip((content_path, style_path), ((160, 128), (128, 112)), strict=True)
    content, style = (np.array(Image.open(path).convert("RGB").resize(size)) for path, size in paths)
    return content, style


@pytest.fixture(scope="module")
def shared(pictures: tuple[Pixels, Pixels]) -> dict[int, Outcomes]:
    """The outcomes by how many processes share them."""
    return together(*pictures)


@pytest.fixture(scope="module")
def two(shared: dict[int, Outcomes]) -> Outcomes:
    return shared[2]


@pytest.fixture(scope="module")
def three(shared: dict[int, Outcomes]) -> Outcomes:
    return shared[3]


@pytest.fixture(scope="module")
def alone(pictures: tuple[Pixels, Pixels]) -> dict[str, Arrays]:
    """The outcomes in one process."""
    backbones: Backbones = {}
    return {case: CASES[case](Process(*pictures, backbones)) for case in (*EVALUATIONS, "run")}


def assert_same_evaluation(found: list[Arrays], truth: Arrays, rounding: float) -> None:
    """The losses to `rounding`, the gradient to ten times as much, and the same bits in every process."""
    for other in found[1:]:
        assert np.array_equal(other["gradient"], found[0]["gradient"])
    for outcome in found:
        for term in LOSSES & truth.keys():
            assert outcome[term] == found[0][term]
            assert outcome[term] == pytest.approx(truth[term], rel=rounding)
        wrong = outcome["gradient"].astype(np.float64) - truth["gradient"]
        assert np.linalg.norm(wrong) < 10 * rounding * np.linalg.norm(truth["gradient"])


@pytest.mark.parametrize("case", EVALUATIONS)
def test_two_processes_evaluate_what_one_does(two: Outcomes, alone: dict[str, Arrays], case: str):
    assert_same_evaluation(two[case], alone[case], 1e-3 if case == "bfloat16" else 1e-5)


def test_three_processes_evaluate_what_one_does(three: Outcomes, alone: dict[str, Arrays]):
    """In tiles that are not all of one size: ten squares of 16 pixels have no third."""
    assert [outcome["tiles"] for outcome in three["gram"]] == [3, 3, 3]
    assert_same_evaluation(three["gram"], alone["gram"], 1e-5)


def test_every_process_holds_the_targets_of_its_own_tiles_alone(two: Outcomes, alone: dict[str, Arrays]):
    targets = 512 * (160 // 8) * (128 // 8) * 4
    others = int(alone["gram"]["bytes"]) - targets
    assert sum(int(outcome["bytes"]) - others for outcome in two["gram"]) == targets
    assert [int(outcome["tiles"]) for outcome in two["gram"]] == [2, 2]


def test_an_only_tile_goes_through_the_network_once(two: Outcomes, three: Outcomes):
    assert [int(outcome["passes"]) for outcome in (*two["gram"], *three["gram"])] == [1] * 5
    assert [int(outcome["passes"]) for outcome in two["small tiles"]] == [int(two["small tiles"][0]["tiles"])] * 2


def test_the_smallest_budget_counts_for_all(two: Outcomes):
    assert two["small tiles"][0]["tiles"] == two["small tiles"][1]["tiles"] > 4


def test_a_process_may_have_no_tile(two: Outcomes):
    assert [int(outcome["tiles"]) for outcome in two["tiny"]] == [1, 1]


def test_a_run_ends_in_one_picture(two: Outcomes, alone: dict[str, Arrays]):
    first, second = two["run"]
    assert np.array_equal(first["image"], second["image"])
    assert first["total"] == second["total"] == pytest.approx(alone["run"]["total"], rel=1e-3)
    assert np.abs(first["picture"].astype(int) - alone["run"]["picture"].astype(int)).max() <= 1


def test_a_run_resumes_to_the_bit(two: Outcomes):
    for outcome in two["run"]:
        assert np.array_equal(outcome["resumed"], outcome["image"])


def test_images_are_one_where_processes_compute_differently(two: Outcomes):
    first, second = two["wandering"]
    assert np.array_equal(first["image"], second["image"])


def errors(outcomes: list[Arrays]) -> list[str]:
    return [str(outcome.get("error", "none")) for outcome in outcomes]


@pytest.mark.parametrize(
    ("case", "field"),
    [
        ("other pixels", "content"),
        ("other size", "size"),
        ("other steering", "strength"),
        ("other budget", "memory_budget"),
    ],
)
def test_different_inputs_are_refused_in_every_process(two: Outcomes, case: str, field: str):
    message = f"OptionError: {field}: process 1 of 2 has another one than process 0: give all of them the same"
    assert errors(two[case]) == [message, message]


def test_a_failure_in_one_process_is_one_in_all(two: Outcomes):
    first, second = errors(two["unusable in one"])
    assert first == "RuntimeError: process 1 of 2 has failed, and its own error says why"
    assert second.startswith("WeightsError: ")


def test_nobody_waits_for_a_process_that_is_gone(two: Outcomes):
    first, second = errors(two["left alone"])
    assert first.startswith("RuntimeError: ")
    assert "Connection" in first
    assert second == "none"


def test_what_needs_the_whole_picture_is_refused(two: Outcomes):
    message = (
        "OptionError: style_statistic: needs the maps of a picture as a whole, and 2 processes share it: "
        "choose another, or use one process"
    )
    assert errors(two["sliced"]) == [message, message]


def test_a_process_alone_shares_nothing():
    alone, items = Processes(), [object(), object()]
    assert alone.own(items) == alone.summed(items) == alone.agreed(items) == items
    assert alone.least(5) == 5
    with pytest.raises(KeyError), alone.in_step({"content": 1}):
        raise KeyError


def test_digests_tell_values_apart_and_nothing_else():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    same = [pixels.copy(), np.asfortranarray(pixels), pixels[:, ::-1].copy()[:, ::-1]]
    assert {digest(one) for one in same} == {digest(pixels)}
    assert digest({"a": 1, "b": [pixels]}) == digest({"b": [pixels.copy()], "a": 1})
    others = [
        pixels,
        pixels + 1,
        pixels.reshape(4, 2, 3),
        pixels.view(np.int8),
        None,
        1,
        1.0,
        "1",
        [1],
        [[1]],
        {"a": 1},
    ]
    assert len({digest(one) for one in others}) == len(others)
