"""How fast a job goes, and how long it still takes."""

from nst.v1 import job_pb2
from nst_engine import StepReport

SMOOTHING = 0.8


class Pace:
    """Smooths the time of one iteration over one pixel, which hardly depends on the scale."""

    def __init__(self) -> None:
        self._seconds_per_pixel: float | None = None
        self.scale_ended = False

    def progress(self, report: StepReport, seconds: float) -> job_pb2.Progress:
        """The report with pace and time left, which count `seconds` for this iteration."""
        sample = seconds / (report.width * report.height)
        before = self._seconds_per_pixel
        self._seconds_per_pixel = sample if before is None else SMOOTHING * before + (1 - SMOOTHING) * sample
        self.scale_ended = report.iteration == report.schedule[report.scale - 1].last
        pace = self._seconds_per_pixel * report.width * report.height
        return job_pb2.Progress(
            iteration=report.iteration,
            iterations=report.iterations,
            scale=report.scale,
            scales=report.scales,
            width=report.width,
            height=report.height,
            total_loss=report.total_loss,
            losses=report.losses,
            undone=report.undone,
            iterations_per_second=1 / pace if pace > 0 else 0,
            seconds_left=self._seconds_per_pixel * _pixels_left(report),
        )


def _pixels_left(report: StepReport) -> int:
    """The pixels of every iteration to come, as the schedule stands."""
    return sum(
        max(0, scale.last - max(scale.first, report.iteration)) * scale.width * scale.height
        for scale in report.schedule
    )
