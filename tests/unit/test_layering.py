"""Imports go one way only, and the light parts stay light."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "nst_engine": ROOT / "nst_engine",
    "nst_server": ROOT / "server" / "nst_server",
    "nst_client": ROOT / "client" / "nst_client",
}
TORCH_FREE_ENGINE = tuple(
    f"nst_engine.{name}" for name in ("options", "networks", "network", "vgg", "resnet", "densenet")
)
COMPUTE = ("torch", "torchvision", "nst_engine")


def sources() -> dict[str, Path]:
    """Every module of the three packages by its dotted name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


SOURCES = sources()


def imports(module: str) -> set[str]:
    """The absolute names that a module imports, at the top or inside a function."""
    found = set()
    package = module if SOURCES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(SOURCES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*parents, *([node.module] if node.module else [])])
            members = {f"{origin}.{alias.name}" for alias in node.names}
            found |= {member if member in SOURCES else origin for member in members}
    return found


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def forbidden(module: str, imported: str) -> bool:
    """Whether the design has no arrow from one to the other."""
    if within(imported, *TORCH_FREE_ENGINE):
        return within(module, "nst_client")
    if within(module, "nst_client"):
        return within(imported, "nst_server", "nats", *COMPUTE)
    if within(module, *TORCH_FREE_ENGINE):
        return within(imported, "torch", "torchvision")
    if within(module, "nst_engine"):
        return within(imported, "nst", "nst_server", "nst_client", "grpc", "nats")
    if within(module, "nst_server.model_server"):
        return within(imported, "nst_server.gateway", "nst_client")
    if within(module, "nst_server.gateway"):
        return within(imported, "nst_server.model_server", "nst_client", *COMPUTE)
    if within(imported, "nst_server.gateway", "nst_server.model_server"):
        return module != "nst_server.main"
    return within(imported, "nst_client", *COMPUTE)


def test_the_packages_are_seen():
    assert {"nst_engine.options", "nst_server.pictures.files", "nst_client"} <= SOURCES.keys()
    assert "nst_engine.networks" in imports("nst_engine.options")
    assert "PIL" in imports("nst_server.pictures.files")


def test_every_import_follows_an_arrow():
    wrong = [
        f"{module} imports {imported}"
        for module in sorted(SOURCES)
        for imported in sorted(imports(module))
        if forbidden(module, imported)
    ]
    assert wrong == []


def declared(*extras: str) -> set[str]:
    """The distributions that an install with these extras asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"]]
    for extra in extras:
        requirements += project["optional-dependencies"][extra]
    return {normal(re.split(r"[^\w-]", requirement)[0]) for requirement in requirements}


def normal(distribution: str) -> str:
    return distribution.lower().replace("_", "-")


def install_of(module: str) -> set[str]:
    """What is installed where this module runs."""
    if within(module, "nst_client"):
        return declared()
    if within(module, "nst_engine", "nst_server.model_server", "nst_server.supervisor"):
        return declared("gateway", "server")
    return declared("gateway")


def test_every_import_is_asked_for_by_its_install():
    distributions = packages_distributions()
    missing = []
    for module in sorted(SOURCES):
        roots = {imported.partition(".")[0] for imported in imports(module)}
        for root in sorted(roots - sys.stdlib_module_names - PACKAGES.keys() - {"nst"}):
            if not {normal(name) for name in distributions[root]} & install_of(module):
                missing.append(f"{module} imports {root}")
    # The client takes part in a trace only where the program around it has OpenTelemetry.
    assert missing == ["nst_client.transport imports opentelemetry"]


LOAD_ALL = """
import importlib, sys
for name in sys.argv[2].split(","):
    importlib.import_module(name)
heavy = sorted(set(sys.argv[1].split(",")) & sys.modules.keys())
sys.exit(f"loaded {heavy}" if heavy else 0)
"""


@pytest.mark.parametrize(
    ("part", "heavy"),
    [
        ("nst_client", "torch,torchvision,nats,nst_server,nst_engine"),
        ("nst_server.gateway", "torch,torchvision,nst_client"),
        ("nst_server.main", "torch,torchvision"),
        ("nst_engine.options", "torch,torchvision"),
    ],
)
def test_what_is_loaded_at_run_time(part, heavy):
    names = ",".join(sorted(name for name in SOURCES if within(name, part) and not name.endswith("__main__")))
    run = subprocess.run([sys.executable, "-c", LOAD_ALL, heavy, names], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
