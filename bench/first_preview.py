"""How soon somebody who waits sees something."""

import engine_side
from jobs import CONTENT, STYLE, fresh_jpeg
from report import Facts, Report
from service import service

SIZE = 256


def measure(facts: Facts, *, quick: bool) -> list[Report]:
    """Calls with pictures that the server has not seen, until the first preview is in hand."""
    rounds = 3 if quick else 9
    alone, through = [], []
    with engine_side.engine_process() as engine, service() as served:
        for seed in range(-1, rounds):  # the first round warms both up
            content, style = fresh_jpeg(CONTENT, seed + 1), fresh_jpeg(STYLE, seed + 1)
            alone.append(engine.submit(engine_side.first_picture_seconds, content, style, SIZE).result())
            through.append(served.first_preview_seconds(content, style, SIZE))
    alone, through = alone[1:], through[1:]
    added = [b - a for a, b in zip(alone, through, strict=True)]
    report = Report("first-preview", f"From the call to the first preview, {SIZE} px, upload included", facts)
    report.add("first preview", "s", "", {"engine": alone, "service": through, "added by the service": added})
    return [report]
