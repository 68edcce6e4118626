"""Figures as a table for people and as JSON for programs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

Facts = dict[str, str | int | float]


@dataclass(frozen=True)
class Figure:
    """What was measured, in each of several ways, each time that it was measured.

    Attributes:
        name: what it is.
        unit: its unit.
        ways: the samples by the name of the way; those of one place were taken one after the other.
        target: what it should be, for people.
    """

    name: str
    unit: str
    ways: Mapping[str, Sequence[float]]
    target: str


@dataclass(frozen=True)
class Report:
    """One section's figures and the machine they were taken on."""

    name: str
    title: str
    facts: Facts
    figures: list[Figure] = field(default_factory=list)

    def add(self, name: str, unit: str, target: str, ways: Mapping[str, Sequence[float]]) -> None:
        """Adds a figure; see `Figure`."""
        self.figures.append(Figure(name, unit, ways, target))

    def show(self) -> None:
        """Prints the table: median, and smallest to largest where there are several samples."""
        ways = list(dict.fromkeys(way for figure in self.figures for way in figure.ways))
        table = Table(box=box.SIMPLE_HEAD)
        for heading in ("", "unit", *ways, "target"):
            table.add_column(heading, justify="left" if heading in ("", "unit", "target") else "right")
        for figure in self.figures:
            cells = [_cell(figure.ways.get(way, ())) for way in ways]
            table.add_row(figure.name, figure.unit, *cells, figure.target)
        console = Console(width=150)
        console.print(f"\n{self.title}", table, sep="\n")

    def write(self, folder: Path) -> Path:
        """Writes NAME.json into the folder."""
        path = folder / f"{self.name}.json"
        figures = [
            {
                "name": figure.name,
                "unit": figure.unit,
                "target": figure.target,
                "ways": {way: _summary(samples) for way, samples in figure.ways.items()},
            }
            for figure in self.figures
        ]
        path.write_text(json.dumps({"title": self.title, "machine": self.facts, "figures": figures}, indent=2) + "\n")
        return path


def _summary(samples: Sequence[float]) -> dict[str, Any]:
    return {"median": median(samples), "min": min(samples), "max": max(samples), "samples": list(samples)}


def _cell(samples: Sequence[float]) -> str:
    if not samples:
        return ""
    middle = _number(median(samples))
    return middle if len(samples) == 1 else f"{middle} ({_number(min(samples))} to {_number(max(samples))})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
