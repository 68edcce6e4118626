"""Stylises one picture in several processes of this machine or of several, each on a part of it.

    torchrun --nproc-per-node 2 examples/distributed.py photo.jpg painting.jpg -o stylised.png

Each process takes a GPU where there are GPUs, and a share of the processor's cores where there are none;
`--threads` or OMP_NUM_THREADS above 1 (torchrun itself sets it to 1) say otherwise. On one machine
the processes talk over the loopback interface.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from PIL import Image

from nst_engine import Engine, Style, StylizeOptions
from nst_server import pictures

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
# Longer than any iteration takes: whoever waits longer gives up.
TIMEOUT = timedelta(minutes=10)


def read_arguments() -> argparse.Namespace:
    defaults = StylizeOptions()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("content", type=Path)
    parser.add_argument("style", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--size", type=int, default=defaults.size, help="long side in pixels")
    parser.add_argument("--iterations", type=int, default=defaults.iterations)
    parser.add_argument("--threads", type=int, help="CPU threads of each process")
    return parser.parse_args()


@contextmanager
def process_group(local: int, processes_here: int) -> Iterator[tuple[str, dist.ProcessGroup | None]]:
    """The device of this process, and the group of all."""
    if int(os.environ["WORLD_SIZE"]) == processes_here:
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, LOOPBACK)
    device = f"cuda:{local}" if torch.cuda.device_count() >= processes_here else "cpu"
    if device != "cpu":
        torch.cuda.set_device(local)
    dist.init_process_group("gloo" if device == "cpu" else "nccl", timeout=TIMEOUT)
    try:
        yield device, dist.group.WORLD
    finally:
        dist.destroy_process_group()


def share_of_threads(processes_here: int) -> int:
    """What OMP_NUM_THREADS says, or the cores divided by the processes of this machine."""
    asked = int(os.environ.get("OMP_NUM_THREADS", "1"))
    return asked if asked > 1 else max(1, (os.cpu_count() or 1) // processes_here)


def picture(path: Path) -> NDArray[np.uint8] | NDArray[np.float32]:
    """As the service reads it: upright, over white where it is transparent, 16 bits scaled."""
    return pictures.decode(path.read_bytes(), pictures.STORED)


def stylize(arguments: argparse.Namespace, device: str, threads: int, group: dist.ProcessGroup | None) -> None:
    """The same in every process; the first one tells and writes."""
    first = dist.get_rank() == 0
    engine = Engine(device, threads=threads, process_group=group)
    options = StylizeOptions(size=arguments.size, iterations=arguments.iterations)
    session = engine.start(picture(arguments.content), [Style(picture(arguments.style))], options)
    while not session.finished:
        report = session.advance()
        if first:
            print(f"{report.iteration} of {report.iterations}: loss {report.total_loss:.6g}", flush=True)
    if first:
        Image.fromarray(session.image()).save(arguments.output)
        print(arguments.output)


def main() -> None:
    arguments = read_arguments()
    if "LOCAL_RANK" not in os.environ:
        sys.exit("run this by torchrun: torchrun --nproc-per-node 2 examples/distributed.py CONTENT STYLE -o OUTPUT")
    local, processes_here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    with process_group(local, processes_here) as (device, group):
        stylize(arguments, device, arguments.threads or share_of_threads(processes_here), group)


if __name__ == "__main__":
    main()
