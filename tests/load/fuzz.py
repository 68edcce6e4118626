"""Fuzzes what reads clients' bytes: most cases in this process's children, some against a real gateway.

Every case follows from the seed, its kind and its number, which a finding names. Run by `make fuzz`.
"""

import argparse
import asyncio
import faulthandler
import multiprocessing
import sys
import time
import warnings
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import machine
import psutil
from gateway_support import CONTENT, upload_messages
from hostile_calls import Attacker, Outcome
from load_server import LoadServer, load_server
from processes import RESULTS
from random_messages import Fuzz
from reading_cases import CASES, picture_files, run_case
from report import Report

from nst.v1.style_transfer_service_pb2_grpc import StyleTransferServiceStub
from nst_calls import samples

SHARE_IN_PROCESS = 0.6
CASE_SECONDS = 20
WARM_UP_CASES = 500
MAX_GROWTH_MIB = 64
MIB = 2**20
SPAWN = multiprocessing.get_context("spawn")


def run_kind(kind: str, seed: str, seconds: float, parent: Connection, place: Path) -> None:
    """Runs cases of one kind and sends the parent what came of them. `place` holds the running case's name."""
    warnings.simplefilter("ignore")
    outcome, deadline, resident, number = Outcome(), time.monotonic() + seconds, 0, 0
    with place.open("wb", buffering=0) as running:
        while time.monotonic() < deadline:
            number += 1
            case = f"{seed}/{kind}/{number}"
            running.seek(0)
            running.write(f"{case}\n".encode())
            faulthandler.dump_traceback_later(CASE_SECONDS, exit=True)
            try:
                outcome.statuses[run_case(kind, Fuzz(case, picture_files())) or "taken"] += 1
            except Exception as error:
                outcome.statuses["FOUND"] += 1
                outcome.findings.append(f"{case}: {error!r}"[:300])
            if number == WARM_UP_CASES:
                resident = psutil.Process().memory_info().rss
    faulthandler.cancel_dump_traceback_later()
    grown = (psutil.Process().memory_info().rss - resident) / MIB
    if number > WARM_UP_CASES and grown > MAX_GROWTH_MIB:
        outcome.findings.append(f"{seed}/{kind}: {grown:.0f} MiB more memory after {number} cases")
    parent.send(outcome)


def fuzz_in_process(seed: str, seconds: float) -> dict[str, Outcome]:
    """Each kind of case in a process of its own, one after the other."""
    outcomes = {}
    for kind in CASES:
        ours, theirs = SPAWN.Pipe()
        with TemporaryDirectory() as folder:
            place = Path(folder) / "case"
            child = SPAWN.Process(target=run_kind, args=(kind, seed, seconds / len(CASES), theirs, place))
            child.start()
            theirs.close()
            try:
                outcomes[kind] = ours.recv()
            except EOFError:
                outcomes[kind] = Outcome(findings=[f"{place.read_text().splitlines()[0]}: crashed or hung"])
            child.join()
    return outcomes


async def fuzz_gateway(seed: str, seconds: float, server: LoadServer) -> Outcome:
    """Hostile calls; afterwards the gateway has let go of everything and serves."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        await Attacker(channel, f"{seed}/warm-up").attack(time.monotonic() + 0.2 * seconds)
        resident = server.resident_mib()
        attacker = Attacker(channel, f"{seed}/gateway")
        await attacker.attack(time.monotonic() + 0.8 * seconds)
        answer = await StyleTransferServiceStub(channel).UploadImage(upload_messages(CONTENT), timeout=30)
        if (answer.width, answer.height) != (48, 32):
            attacker.outcome.findings.append("afterwards it takes no pictures")
    grown = server.resident_mib() - resident
    if grown > MAX_GROWTH_MIB:
        attacker.outcome.findings.append(f"{grown:.0f} MiB more memory than after a fifth of the calls")
    await asyncio.sleep(1)
    told = samples(server.gateway.metrics_address)
    if watchers := told["nst_watchers"][0].value:
        attacker.outcome.findings.append(f"{watchers:.0f} watchers are left")
    for sample in told["grpc_server_handled_total"]:
        if sample.labels["grpc_code"] in ("INTERNAL", "UNKNOWN"):
            attacker.outcome.findings.append(f"the gateway counted {sample}")
    return attacker.outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--case", help="Runs one case again, by the name that a finding gave it: SEED/KIND/NUMBER.")
    arguments = parser.parse_args()
    if arguments.case:
        print(run_case(arguments.case.split("/")[1], Fuzz(arguments.case, picture_files())) or "taken")
        return
    seconds = 60 * arguments.minutes
    report = Report("fuzz", f"Fuzzing with seed {arguments.seed}", machine.facts())
    outcomes = fuzz_in_process(arguments.seed, SHARE_IN_PROCESS * seconds)
    with load_server(NST_HEARTBEAT_SECONDS="0.5", NST_MAX_QUEUED_JOBS="1000000") as server:
        calls = fuzz_gateway(arguments.seed, (1 - SHARE_IN_PROCESS) * seconds, server)
        outcomes["calls to a gateway"] = asyncio.run(calls)
    _show(report, outcomes)
    sys.exit(any(outcome.findings for outcome in outcomes.values()))


def _show(report: Report, outcomes: dict[str, Outcome]) -> None:
    total: Counter[str] = Counter()
    for kind, outcome in outcomes.items():
        counts = {"cases": outcome.statuses.total(), "findings": len(outcome.findings)}
        total.update(counts)
        report.add(kind, "", "no findings", {name: [count] for name, count in counts.items()})
        common = ", ".join(f"{status} {count}" for status, count in outcome.statuses.most_common(12))
        print(f"{kind}: {common}")
        for finding in outcome.findings[:20]:
            print(f"  FOUND {finding}")
    report.add("in all", "", "200,000 cases", {name: [count] for name, count in total.items()})
    report.show()
    report.write(RESULTS)


if __name__ == "__main__":
    main()
