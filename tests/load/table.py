"""What a run found, as a table for people and as JSON for programs."""

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

RESULTS = Path(__file__).parents[2] / "bench" / "results"


@dataclass(frozen=True)
class Row:
    """One finding.

    Attributes:
        name: what it is.
        value: how it came out.
        target: how it should be; empty where nothing is promised.
        kept: whether it is so; None where nothing is promised.
    """

    name: str
    value: str | int | float
    target: str = ""
    kept: bool | None = None


@dataclass
class Table:
    """The findings of one run."""

    name: str
    title: str
    rows: list[Row] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, value: str | int | float, target: str = "", kept: bool | None = None) -> None:
        """Adds a finding; see `Row`."""
        self.rows.append(Row(name, value, target, kept))

    @property
    def broken(self) -> list[Row]:
        """The promises that were not kept."""
        return [row for row in self.rows if row.kept is False]

    def show(self) -> None:
        """Prints the table."""
        table = RichTable(box=box.SIMPLE_HEAD)
        for heading, side in (("", "left"), ("found", "right"), ("promised", "left"), ("kept", "left")):
            table.add_column(heading, justify="right" if side == "right" else "left")
        for row in self.rows:
            value = f"{row.value:.3g}" if isinstance(row.value, float) else str(row.value)
            table.add_row(row.name, value, row.target, {None: "", True: "yes", False: "NO"}[row.kept])
        Console(width=150).print(f"\n{self.title}", table, sep="\n")

    def write(self) -> Path:
        """Writes NAME.json beside the benchmarks' results."""
        RESULTS.mkdir(parents=True, exist_ok=True)
        path = RESULTS / f"{self.name}.json"
        found = {"title": self.title, "rows": [asdict(row) for row in self.rows], **self.details}
        path.write_text(json.dumps(found, indent=2) + "\n")
        return path

    def told(self) -> int:
        """Shows the table and writes it; 0 when every promise was kept."""
        self.show()
        self.write()
        return 1 if self.broken else 0


def finish(name: str, run: Callable[[Path], Table]) -> int:
    """Does the run in a folder of its own, shows what it found and writes it down; 0 when every promise was kept.

    The folder stays where one was not: the logs are in it.
    """
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # which asyncio ends tidily
    folder = RESULTS / f"{name}-files"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if run(folder).told():
        print(f"The logs are in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0
