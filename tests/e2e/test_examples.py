"""The examples do on a small scale what they say."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from nst_engine import Style, StylizeOptions, stylize
from nst_processes import Server, free_port

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(monkeypatch: pytest.MonkeyPatch, name: str) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module(name)


def test_inpainting_changes_the_hole_alone(server: Server, monkeypatch: pytest.MonkeyPatch):
    sheet = example(monkeypatch, "inpaint").inpaint(server.address, side=64, iterations=4)
    damaged, mended, painted = np.split(np.asarray(sheet).astype(int), 3, axis=1)
    hole = (damaged == (255, 0, 255)).all(2)
    assert hole.mean() == pytest.approx((80 / 256) ** 2, rel=0.1)
    for result in (mended, painted):
        assert np.array_equal(result[~hole], damaged[~hole])
    assert np.ptp(mended[hole], axis=1).max() < 60  # grey, as the wall is
    assert np.ptp(painted[hole], axis=1).mean() > 2 * np.ptp(mended[hole], axis=1).mean()


def test_an_enlarged_picture_has_the_size_and_more_detail(server: Server, monkeypatch: pytest.MonkeyPatch):
    sheet = example(monkeypatch, "enlarge").enlarge(server.address, small=32, size=128, iterations=12)
    plain, painted = np.split(np.asarray(sheet).astype(float).mean(2), 2, axis=1)
    assert painted.shape[1] == 128
    fine = [np.std(picture - ndimage.gaussian_filter(picture, 1.5)) for picture in (plain, painted)]
    assert fine[1] > 1.5 * fine[0]


def test_two_processes_paint_what_one_does(tmp_path: Path, content_path: Path, style_path: Path):
    output = tmp_path / "two.png"
    address = ["--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    work = [EXAMPLES / "distributed.py", content_path, style_path, "-o", output]
    small = ["--size", "96", "--iterations", "4", "--threads", "1"]
    command = [sys.executable, "-m", "torch.distributed.run", *address, *work, *small]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count(" of 4: loss") == 4, "the first process alone tells"
    content, style = (np.asarray(Image.open(path).convert("RGB")) for path in (content_path, style_path))
    *_, (_, alone) = stylize(content, [Style(style)], StylizeOptions(size=96, iterations=4))
    assert np.abs(np.asarray(Image.open(output)).astype(int) - alone).mean() < 0.5
