"""Measures the system on this machine, prints tables, and leaves the figures in bench/results/.

Run by `make bench`; docs/benchmarks.md says what each figure means.
"""

import argparse
import signal
import time
from functools import partial

import ablations
import batching
import big_pictures
import checkpoints
import default_job
import distributed
import efficiency
import engine_side
import enlargement
import first_preview
import holes
import looks
import machine
import memory
import overhead
import portraits
import strength
import time_to_loss
import transfer
from processes import RESULTS

SECTIONS = {
    "overhead": overhead.measure,
    "default-job": default_job.measure,
    "first-preview": first_preview.measure,
    "transfer": transfer.measure,
    "memory": memory.measure,
    "checkpoints": checkpoints.measure,
    "portraits": portraits.measure,
    "time-to-loss-256": partial(time_to_loss.measure, size=256),
    "time-to-loss-512": partial(time_to_loss.measure, size=512),
    "efficiency": efficiency.measure,
    "looks": looks.measure,
    "strength": strength.measure,
    "ablations": ablations.measure,
    "batching": batching.measure,
    "big-pictures": big_pictures.measure,
    "holes": holes.measure,
    "enlargement": enlargement.measure,
    "distributed": distributed.measure,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"Of {', '.join(SECTIONS)}; none means all.")
    parser.add_argument("--quick", action="store_true", help="Fewer and shorter runs: shows that everything works.")
    arguments = parser.parse_args()
    unknown = set(arguments.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"there is no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that every process is stopped on the way out
    RESULTS.mkdir(exist_ok=True)
    with engine_side.engine_process() as engine:
        facts = {**machine.facts(), **engine.submit(engine_side.facts).result(), "quick": arguments.quick}
    for name, value in facts.items():
        print(f"{name:<14}{value}")
    for section in arguments.sections or SECTIONS:
        start = time.monotonic()
        for report in SECTIONS[section](facts, quick=arguments.quick):
            report.show()
            report.write(RESULTS)
        print(f"{section}: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
