"""Where weights come from: pinned sources, a cache of safetensors, and local files."""

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from nst_engine.networks import NETWORKS, Network
from nst_engine.state_dicts import conform
from nst_engine.weight_sources import SOURCES, Source, WeightsError

log = logging.getLogger(__name__)

__all__ = ["WeightsError", "cache_directory", "fetch", "import_file", "is_cached", "load", "locate", "read_file"]


def cache_directory(cache_dir: Path | None = None) -> Path:
    """Where weights are kept: `cache_dir`, or else `$NST_CACHE`, or else `~/.cache/nst`."""
    return cache_dir or Path(os.environ.get("NST_CACHE") or Path.home() / ".cache" / "nst")


def is_cached(name: str, cache_dir: Path | None = None) -> bool:
    """Whether the weights of the model `name` are in the cache. Their digest is checked by `load`."""
    return locate(name, cache_dir).is_file()


def load(name: str, cache_dir: Path | None = None) -> dict[str, Tensor]:
    """The weights of the model `name`, from the cache; fetched first when missing or damaged.

    Returns:
        By name, in float32: of a VGG "conv1_1.weight" (O, I, 3, 3), "conv1_1.bias" (O,), ...; of other
        networks the tensors of torchvision's module, by its names, without the classifier.

    Raises:
        WeightsError: they can neither be read nor fetched; the message lists the ways to get them.
    """
    path = locate(name, cache_dir)
    if path.is_file():
        with suppress(WeightsError):
            return _read_cached(path, NETWORKS[name])
    fetch(name, cache_dir)
    return _read_cached(path, NETWORKS[name])


def fetch(name: str, cache_dir: Path | None = None, source: Source | None = None) -> Path:
    """Fetches the weights of the model `name` from its source into the cache, and returns the file.

    Two processes may do this at once: each works in a folder of its own, and the last rename wins.

    Raises:
        WeightsError: the source cannot be reached, what it gave has another digest, or the cache cannot be written.
    """
    path = locate(name, cache_dir)
    source = source or SOURCES[name]
    log.info("fetching the weights of %s: %s", name, source.description)
    try:
        with _writing(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{name}-") as scratch:
            _store(source.fetch(Path(scratch)), NETWORKS[name], path, source.sha256)
    except WeightsError as error:
        raise WeightsError(f"{error}\n{ways_to_get(name)}") from error
    return path


def import_file(name: str, file: Path, cache_dir: Path | None = None) -> Path:
    """Copies a local weights file of the model `name` into the cache, and returns the copy.

    Raises:
        WeightsError: the file does not hold the weights of that network, or the cache cannot be written.
    """
    path = locate(name, cache_dir)
    tensors = read_file(file, NETWORKS[name])
    with _writing(path):
        _store(tensors, NETWORKS[name], path, hashlib.sha256(file.read_bytes()).hexdigest())
    return path


def read_file(file: Path, network: Network) -> dict[str, Tensor]:
    """The weights of `network` in a local safetensors or .pth file.

    Tensors may be called as `load` calls them, or as in torchvision's files.

    Raises:
        WeightsError: the file cannot be read, or a tensor is missing or has another shape.
    """
    try:
        if file.suffix == ".safetensors":
            tensors = load_file(file)
        else:
            tensors = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no pickle makes torch.load raise almost anything
        raise WeightsError(f"{file} cannot be read as weights ({error})") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise WeightsError(f"{file} holds no tensors by name: save the network's state_dict")
    return conform(tensors, network, str(file))


def ways_to_get(name: str) -> str:
    """Advice for who lacks the weights of the model `name`."""
    return (
        f"Ways to get the weights of {name}:\n"
        f"  - where the network allows: nst weights pull {name} ({SOURCES[name].description});\n"
        f"  - from a file you have:     nst weights pull {name} --from FILE (.safetensors or .pth);\n"
        f"  - from another machine:     copy its {locate(name, None)} to the same place here,\n"
        "    or point NST_CACHE at the folder that holds it."
    )


def locate(name: str, cache_dir: Path | None = None) -> Path:
    """Where the weights of the model `name` are kept, whether or not they are there yet."""
    return cache_directory(cache_dir) / f"{name}.safetensors"


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Makes the folder of a file that is written in it. Raises WeightsError where either cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path.parent} cannot be written ({error}): make room or set NST_CACHE") from error


def _store(tensors: Mapping[str, Tensor], network: Network, path: Path, source_sha256: str) -> None:
    conformed = conform(tensors, network, "the source")
    metadata = {"tensors_sha256": _digest(conformed), "source_sha256": source_sha256}
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as temporary:
        temporary.close()
        try:
            save_file(conformed, temporary.name, metadata=metadata)
            os.chmod(temporary.name, 0o644)
            os.replace(temporary.name, path)
        finally:
            Path(temporary.name).unlink(missing_ok=True)


def _read_cached(path: Path, network: Network) -> dict[str, Tensor]:
    tensors = read_file(path, network)
    with safe_open(path, "pt") as file:
        recorded = (file.metadata() or {}).get("tensors_sha256")
    if recorded != _digest(tensors):
        raise WeightsError(f"{path} is damaged: its digest is not the one recorded in it")
    return tensors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy().data)
    return digest.hexdigest()
