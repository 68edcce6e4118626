"""Whose turn it is: device time shared by weight between lanes, their tenants, and the jobs of each.

No torch, no event loop and no clock: the runner says what a turn has cost.
"""

from collections.abc import Collection, Hashable, Mapping
from typing import Generic, Protocol, TypeVar

from nst_server.jobs.tickets import Account

LANE_WEIGHTS = {"interactive": 8.0, "batch": 1.0}
# How far ahead of its share, in seconds by weight, a lane or a tenant may get by going along in the
# batches of others. Without a bound, many jobs of one would slow down the other's at every turn;
# without any lead there would be no batches of two tenants.
LEAD_SECONDS = 1.0

K = TypeVar("K", bound=Hashable)


class Share(Generic[K]):
    """Start-time fair queueing (Goyal, Vin and Cheng, 1996) between siblings.

    Each has a tag: the seconds it has been served, by its weight. The least tag is served next, and is
    the virtual time then. Who comes, or comes again, starts there at least, so that it neither owes
    nor is owed anything for its absence; tags that the virtual time has passed need not be kept.
    """

    def __init__(self, weights: Mapping[K, float] | None = None) -> None:
        """`weights` are above 0; 1 where none is given."""
        self._weights = weights or {}
        self._now = 0.0
        self._ahead: dict[K, float] = {}

    def __len__(self) -> int:
        """How many tags are kept."""
        return len(self._ahead)

    def tag(self, key: K) -> float:
        """Seconds of service by weight."""
        return max(self._now, self._ahead.get(key, 0.0))

    def lead(self, key: K) -> float:
        """How far ahead it is of the virtual time, in seconds by weight."""
        return self.tag(key) - self._now

    def advance(self, present: Collection[K]) -> K:
        """The one to serve next of those that can be served; the first of equals."""
        first = min(present, key=self.tag)
        self._now = self.tag(first)
        self._ahead = {key: tag for key, tag in self._ahead.items() if tag > self._now}
        return first

    def charge(self, key: K, seconds: float) -> None:
        """Bills a service."""
        self._ahead[key] = self.tag(key) + seconds / self._weights.get(key, 1.0)

    def forget(self, key: K) -> None:
        """Drops one that will not come again."""
        self._ahead.pop(key, None)


class Accounts:
    """Device time between the lanes, and in each lane between its tenants."""

    def __init__(self, tenant_weights: Mapping[str, float]) -> None:
        self._lanes = Share(LANE_WEIGHTS)
        self._tenants = {lane: Share(tenant_weights) for lane in LANE_WEIGHTS}

    def advance(self, present: Collection[Account]) -> Account:
        """The account to serve next of those that can be served."""
        firsts = {
            lane: tenants.advance([account.tenant for account in present if account.lane == lane])
            for lane, tenants in self._tenants.items()
            if any(account.lane == lane for account in present)
        }
        lane = self._lanes.advance(firsts)
        return Account(lane, firsts[lane])

    def position(self, account: Account) -> tuple[float, float, float]:
        """Sorts accounts into the order in which they are to be served; of equal lanes the heavier comes first."""
        lane = account.lane
        return self._lanes.tag(lane), -LANE_WEIGHTS[lane], self._tenants[lane].tag(account.tenant)

    def lead(self, account: Account) -> float:
        """How far its lane is ahead of the others, or it of its lane, in seconds by weight."""
        return max(self._lanes.lead(account.lane), self._tenants[account.lane].lead(account.tenant))

    def charge(self, account: Account, seconds: float) -> None:
        """Bills a service to the tenant and its lane."""
        self._lanes.charge(account.lane, seconds)
        self._tenants[account.lane].charge(account.tenant, seconds)


class Job(Protocol):
    """What is scheduled."""

    def __hash__(self) -> int:
        """By identity."""

    @property
    def account(self) -> Account:
        """Who is billed."""

    @property
    def batch_key(self) -> Hashable | None:
        """Jobs of one key can be turned together; None goes alone."""


J = TypeVar("J", bound=Job)


class Scheduler(Generic[J]):
    """Chooses the jobs of each turn, and bills them for it."""

    def __init__(self, tenant_weights: Mapping[str, float], max_batch: int) -> None:
        self._accounts = Accounts(tenant_weights)
        self._jobs: dict[Account, Share[J]] = {}
        self._max_batch = max_batch

    def choose(self, present: Collection[J]) -> list[J]:
        """The job whose turn it is of those, at least one, that can be turned, and who goes along with it."""
        account = self._accounts.advance(dict.fromkeys(job.account for job in present))
        first = self._share(account).advance([job for job in present if job.account == account])
        if first.batch_key is None:
            return [first]
        along = [
            job
            for job in present
            if job is not first
            and job.batch_key == first.batch_key
            and self._accounts.lead(job.account) <= LEAD_SECONDS
        ]
        along.sort(key=lambda job: (self._accounts.position(job.account), self._share(job.account).tag(job)))
        return [first, *along[: self._max_batch - 1]]

    def charge(self, jobs: Collection[J], seconds: float) -> None:
        """Bills each of the jobs for its part of a turn that they shared."""
        for job in jobs:
            self._accounts.charge(job.account, seconds / len(jobs))
            self._share(job.account).charge(job, seconds / len(jobs))

    def forget(self, job: J) -> None:
        """Drops a job that will not be turned again."""
        share = self._share(job.account)
        share.forget(job)
        if not len(share):  # its jobs are all even, as in a new one
            del self._jobs[job.account]

    def _share(self, account: Account) -> Share[J]:
        return self._jobs.setdefault(account, Share())
