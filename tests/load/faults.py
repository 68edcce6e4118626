"""What goes wrong in a run: processes that die, processes that stop and come back, connections that break."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from time import monotonic

from clients import LoadClient
from cluster import GATEWAY, MODEL_SERVER, NATS, Cluster, Member

KINDS = (
    ("kill", MODEL_SERVER),
    ("kill", GATEWAY),
    ("kill", NATS),
    ("freeze", MODEL_SERVER),
    ("freeze", GATEWAY),
    ("freeze", NATS),
    ("cut", "client"),
)


@dataclass(frozen=True)
class Fault:
    """One fault: when, in seconds from the start of the faults, what, and to whom."""

    at: float
    action: str
    target: str


@dataclass
class Faults:
    """Harms a cluster and its clients, at random but the same for the same `rng`, as far as timing allows."""

    cluster: Cluster
    clients: Sequence[LoadClient]
    rng: Random
    freeze_seconds: float
    done: list[Fault] = field(default_factory=list)
    _thawing: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self, count: int, pause: float) -> None:
        """That many faults, `pause` seconds apart on average; returns when every frozen process goes on."""
        start = monotonic()
        for action, kind in self._shuffled(count):
            await asyncio.sleep(self.rng.uniform(0.5, 1.5) * pause)
            target = await self._harm(action, kind)
            self.done.append(Fault(round(monotonic() - start, 1), action, target))
            print(f"{self.done[-1].at:6.1f} s  {action} {target}", flush=True)
        if self._thawing:
            await asyncio.wait(self._thawing)

    def _shuffled(self, count: int) -> Iterator[tuple[str, str]]:
        """Every kind equally often, in an order that differs from round to round."""
        for start in range(0, count, len(KINDS)):
            yield from self.rng.sample(KINDS, len(KINDS))[: count - start]

    async def _harm(self, action: str, kind: str) -> str:
        if action == "cut":
            client = self.rng.choice(self.clients)
            client.cut()
            return client.name
        member = await self._healthy(kind)
        if action == "kill":
            member.kill()
        else:
            task = asyncio.create_task(member.freeze(self.freeze_seconds))
            self._thawing.add(task)
            task.add_done_callback(self._thawing.discard)
        return member.name

    async def _healthy(self, kind: str) -> Member:
        """One of the processes of this kind that run, waited for when all are down."""
        members = [member for member in self.cluster.members if member.kind == kind]
        while True:
            if healthy := [member for member in members if member.healthy]:
                return self.rng.choice(healthy)
            await asyncio.sleep(0.1)
