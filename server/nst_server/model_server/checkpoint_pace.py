"""When the state of a job is to be stored."""

COST_RATIO = 50.0  # a checkpoint may cost a fiftieth of the time between two
LONGEST_PAUSE = 2.0  # times the usual one, however much it costs
WAITS = 20.0  # by the clock, as many times as long as by the job's own time on the device


class CheckpointPace:
    """Counts what a job has done since its state was last asked for, or its first step came.

    What counts is the job's own share of the device: so up to twenty jobs write to the store as much as one. By the
    clock it is no longer than that many times as long.
    """

    def __init__(self, pause: float, clears_at: int | None) -> None:
        """Takes seconds between checkpoints, and the iteration whose state clears the job of suspicion, if it is so."""
        self._usual_pause = self._pause = pause
        self._clears_at = clears_at
        self._since: float | None = None
        self._device_seconds = 0.0

    def advance(self, device_seconds: float, now: float) -> None:
        """Counts a step that took so much of the device and ended at `now`, on a clock of seconds."""
        self._device_seconds += device_seconds
        if self._since is None:
            self._since = now

    def is_due(self, iteration: int, now: float) -> bool:
        """Whether it is time for a checkpoint; at once when one clears the job of suspicion."""
        waited = 0.0 if self._since is None else now - self._since
        return self._clears(iteration) or max(self._device_seconds, waited / WAITS) >= self._pause

    def asked(self, iteration: int, now: float) -> None:
        """The state at this iteration is on its way."""
        self._since, self._device_seconds = now, 0.0
        if self._clears(iteration):
            self._clears_at = None

    def stored(self, cost: float) -> None:
        """Packing and storing a checkpoint took so many seconds."""
        self._pause = min(max(self._usual_pause, COST_RATIO * cost), LONGEST_PAUSE * self._usual_pause)

    def _clears(self, iteration: int) -> bool:
        return self._clears_at is not None and iteration >= self._clears_at
