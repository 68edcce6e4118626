"""How much of the machine's own matrix rate an iteration uses."""

import torch
from clock import timed
from neural_style import OBJECTIVE
from pairs import PAIRS
from report import Facts, Report

from nst_engine import Engine, Style, hardware
from nst_engine.networks import NETWORKS
from nst_engine.options import StylizeOptions
from nst_engine.schedule import taps_in_use

SIZE = 512
ROUNDS = 8
TARGET = "80 on a CPU, 50 on an H100"
# Rows, inner side and columns of the products that the machine is held to: that of a middle layer at
# this size, and larger ones. The best of them counts.
PRODUCTS = ((10912, 2304, 256), (2048, 2048, 2048), (4096, 4096, 4096))
OBJECTIVES = {
    "default": StylizeOptions(size=SIZE, scales=1),
    "neural-style-pt's": StylizeOptions(size=SIZE, scales=1, **OBJECTIVE),
}


def measure(facts: Facts, *, quick: bool) -> list[Report]:
    """Iterations and matrix products in the engine's own precision, by turns in this process."""
    report = Report("efficiency", f"The network's operations over the whole of an iteration, {SIZE} px", facts)
    engine = Engine()
    for name, options in OBJECTIVES.items():
        rates = _rates(engine, options, 2 if quick else ROUNDS)
        shares = [100 * iteration / product for iteration, product in rates]
        for way, samples in zip(("iteration", "matrix product"), zip(*rates, strict=True), strict=True):
            report.add(f"{name} objective, {way}", "GFLOP/s", "", {"rate": [rate / 1e9 for rate in samples]})
        report.add(f"{name} objective, share", "%", TARGET, {"rate": shares})
    return [report]


def _rates(engine: Engine, options: StylizeOptions, rounds: int) -> list[tuple[float, float]]:
    """Operations a second in an iteration, and beside it in the best of the products."""
    content, style = PAIRS[0].load(SIZE)
    session = engine.start(content, [Style(style)], options)
    for _ in range(3):
        session.advance()
    operations = network_operations(options, *content.shape[:2])
    return [
        (
            operations / timed(session.advance)[1],
            max(_product_rate(shape, engine.device) for shape in PRODUCTS),
        )
        for _ in range(rounds)
    ]


def network_operations(options: StylizeOptions, height: int, width: int) -> int:
    """Of one pass forward and one back to the picture, two for each multiplication, as far as the taps need."""
    network, taps = NETWORKS[options.model], taps_in_use(options)
    deepest = max(network.taps.index(tap) for tap in taps)
    multiplications = 0
    for name, (channels_in, channels_out) in network.convs.items():
        if network.taps.index(name) <= deepest:
            stride = network.stride(name)
            multiplications += 9 * channels_in * channels_out * (height // stride) * (width // stride)
    return 4 * multiplications


def _product_rate(shape: tuple[int, int, int], device: torch.device) -> float:
    rows, inner, columns = shape
    dtype = hardware.arithmetic("auto", device).dtype
    left = torch.randn(rows, inner, device=device).to(dtype)
    right = torch.randn(inner, columns, device=device).to(dtype)
    return 2 * rows * inner * columns / min(timed(lambda: left @ right)[1] for _ in range(3))
