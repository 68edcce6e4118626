"""Small files that hold weights of a network's full shapes, and a place that serves them."""

import hashlib
import http.server
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

TORCHVISION_VGG16 = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
TORCHVISION_VGG19 = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)

Shapes = dict[str, tuple[int, int]]


def conv_shapes(blocks: tuple[tuple[int, ...], ...]) -> Shapes:
    """Convolution name to (channels in, channels out), from the widths of each block."""
    shapes, inputs = {}, 3
    for block, widths in enumerate(blocks, start=1):
        for index, outputs in enumerate(widths, start=1):
            shapes[f"conv{block}_{index}"] = (inputs, outputs)
            inputs = outputs
    return shapes


def spread_weights(shapes: Shapes, seed: int) -> dict[str, Tensor]:
    """Random weights of full shape over little storage: kernels are overlapping windows of one row of numbers."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (inputs, outputs) in shapes.items():
        row = torch.randn(9 * (inputs + 5 * outputs), generator=generator) * (2 / (9 * inputs)) ** 0.5
        tensors[f"{name}.weight"] = row.as_strided((outputs, inputs, 3, 3), (45, 9, 3, 1))
        tensors[f"{name}.bias"] = 0.1 * torch.randn(outputs, generator=generator)
    return tensors


def torchvision_file(file: Path, tensors: Mapping[str, Tensor], indices: tuple[int, ...]) -> Path:
    """Writes the tensors under torchvision's names, with a classifier beside them."""
    convs = [name.removesuffix(".weight") for name in tensors if name.endswith(".weight")]
    renamed = {"classifier.0.weight": torch.zeros(4, 4), "classifier.0.bias": torch.zeros(4)}
    for name, index in zip(convs, indices, strict=True):
        for part in ("weight", "bias"):
            renamed[f"features.{index}.{part}"] = tensors[f"{name}.{part}"]
    torch.save(renamed, file)
    return file


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@dataclass
class FileServer:
    """A file on a loopback port; with `together` set, answers wait until that many have asked."""

    url: str
    requests: list[str] = field(default_factory=list)
    together: threading.Barrier | None = None


@contextmanager
def served(file: Path) -> Iterator[FileServer]:
    """Serves one file over HTTP for as long as the context lasts."""
    content = file.read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            place.requests.append(self.path)
            if place.together is not None:
                place.together.wait(timeout=60)
            found = self.path == f"/{file.name}"
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(content) if found else 0))
            self.end_headers()
            if found:
                self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            """Keeps the tests' output clean."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        place = FileServer(f"http://127.0.0.1:{server.server_port}/{file.name}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield place
        finally:
            server.shutdown()
            thread.join()
