"""One job on a model server, from claim to last event."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from nst.internal.v1.job_record_pb2 import Checkpoint
from nst.v1 import job_pb2
from nst_engine import BudgetError, DetectorError, SessionState, WeightsError, checkpoint
from nst_server.config import ModelServerSettings
from nst_server.jobs.backbone import Backbone, StoreFull
from nst_server.jobs.control import on_nudge
from nst_server.jobs.deadlines import deadline_error, deadline_of, is_overdue
from nst_server.jobs.lease import Lease, Superseded
from nst_server.jobs.tickets import Flow
from nst_server.model_server import metrics
from nst_server.model_server.checkpoint_pace import CheckpointPace
from nst_server.model_server.failures import DeviceLost, describe_failure, is_device_failure, is_out_of_memory
from nst_server.model_server.job_pictures import JobPictures
from nst_server.model_server.networks import Networks
from nst_server.model_server.others import Others
from nst_server.model_server.pace import Pace
from nst_server.model_server.preparing import Preparations
from nst_server.model_server.runner import Runner
from nst_server.model_server.seats import Failure, Seat, Step, Unchanged
from nst_server.model_server.sessions import SessionSource
from nst_server.options import options_from_proto, steering_from_proto, style_scale

log = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_SECONDS = 2.0


class _Released(Exception):
    """The job was cancelled, paused or handed back: this attempt is over."""


class RunningJob:
    """Runs one leased job and writes its history; `charge` is called with the device seconds of each step."""

    def __init__(
        self,
        lease: Lease,
        flow: Flow,
        backbone: Backbone,
        runner: Runner,
        networks: Networks,
        others: Others,
        preparations: Preparations,
        settings: ModelServerSettings,
        charge: Callable[[float], None],
    ) -> None:
        self.lease = lease
        self.flow = flow
        self._charge = charge
        self._backbone = backbone
        self._runner = runner
        self._networks = networks
        self._others = others
        self._preparations = preparations
        self._settings = settings
        self.waits = False  # for its first turn, with its weights here
        self._pictures = JobPictures(backbone, lease)
        self._look = asyncio.Event()
        self._look.set()
        self._leaves_for: str | None = None
        self._looked_at = 0.0
        self._applied_version = lease.record.checkpoint.control_version
        self._told_version = 0
        self._run_seconds = lease.record.checkpoint.run_seconds
        self._starts_again = False
        self._progress_at = 0.0
        clears_at = lease.record.lease.furthest if lease.suspected else None
        self._checkpoint_pace = CheckpointPace(settings.checkpoint_seconds, clears_at)
        self._checkpointing: asyncio.Task[None] | None = None

    def drain(self, reason: str) -> None:
        """Checkpoints and hands the job back at the next iteration."""
        self._leaves_for = reason
        self._look.set()

    async def run(self) -> None:
        """Works until the job ends or is let go. Never raises but on cancellation."""
        stop_listening = await on_nudge(self._backbone, self.lease.job_id, self._look.set)
        keep_alive = asyncio.create_task(self.lease.keep_alive())
        alarm = asyncio.create_task(self._look_at_deadline())
        try:
            await self._attempt()
        except _Released:
            log.info("job let go", extra=self.about())
        except Superseded:
            log.warning("job taken over", extra=self.about())
            await self.lease.take_back_loss()
        except Exception as error:
            await self._failed(error)
        finally:
            keep_alive.cancel()
            alarm.cancel()
            if self._checkpointing is not None:
                self._checkpointing.cancel()
            with contextlib.suppress(Exception):
                await stop_listening()

    async def _look_at_deadline(self) -> None:
        if deadline := deadline_of(self.lease.record):
            await asyncio.sleep(deadline.time - time.time())
            self._look.set()

    async def _attempt(self) -> None:
        spec = self.lease.record.spec
        seat = Seat(self.flow.account, pixels_of(spec), spec.preview.interval, self._applied_version)
        preparing = asyncio.create_task(self._prepare(seat))
        try:
            await self._follow(seat, Pace())
        finally:
            preparing.cancel()
            self._runner.dismiss(seat)

    async def _prepare(self, seat: Seat) -> None:
        """Brings all that the job needs here, beside the computing of others, and then has it admitted."""
        try:
            await self._networks.ready(options_from_proto(self.lease.record.spec.options))
            self.waits = True
            source = SessionSource(self.lease, self._pictures.store)
            await self._preparations.prepare(seat, source)
            self._starts_again = source.state_lost
        except Exception as error:
            seat.post(Failure(error), asyncio.get_running_loop())
            return
        seat.control_version = self._applied_version = self.lease.record.control.version
        self._runner.admit(seat)

    async def _follow(self, seat: Seat, pace: Pace) -> None:
        while True:
            item = await self._obeying(seat, seat.next())
            if isinstance(item, Failure):
                raise item.error
            if isinstance(item, Unchanged):
                if is_overdue(self.lease.record, time.time()):
                    self._leaves_for = "its time is up"  # who claims it next ends it
                await self._leave_if_wanted(seat)
            elif await self._handle(seat, item, pace):
                return

    async def _obeying(self, seat: Seat, work: Awaitable[T]) -> T:
        """What comes of work that writes no history, beside which is done what the client wants meanwhile."""
        waited_for = asyncio.ensure_future(work)
        try:
            while True:
                looking = asyncio.ensure_future(self._look.wait())
                await asyncio.wait({waited_for, looking}, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                looking.cancel()
                if self._look.is_set() or time.monotonic() - self._looked_at >= LOOK_SECONDS:
                    self._look.clear()
                    self._looked_at = time.monotonic()
                    await self._obey(seat)
                if waited_for.done():
                    return waited_for.result()
        finally:
            waited_for.cancel()

    async def _obey(self, seat: Seat) -> None:
        """Does what the client wants now, as the record has it."""
        record = await self.lease.refresh()
        control = record.control
        if control.cancel:
            self._runner.dismiss(seat)
            await self._checkpoint_ended()
            await self.lease.cancel()
            raise _Released
        if is_overdue(record, time.time()):
            self._runner.show(seat)
        if control.version > self._applied_version:
            self._runner.steer(seat, steering_from_proto(control.weights), control.version)
            self._applied_version = control.version
        if control.paused or self._leaves_for is not None:
            # Its picture is what is kept if the job's time is up before it is claimed again.
            self._runner.snapshot(seat, picture=deadline_of(record) is not None)

    async def _handle(self, seat: Seat, step: Step, pace: Pace) -> bool:
        """Writes what a step has to tell; True when it was the last."""
        self._charge(step.device_seconds)
        now = time.monotonic()
        self._checkpoint_pace.advance(step.device_seconds, now)
        if self._starts_again:
            self._starts_again, self._run_seconds = False, 0.0
            await self.lease.append_state(job_pb2.JOB_STATE_RUNNING, "its checkpoint is lost: starts again")
        self._run_seconds += step.seconds
        progress = pace.progress(step.report, step.seconds)
        progress.control_version = step.control_version
        if step.report.finished:
            await self._finish(seat, step, progress)
            return True
        if step.picture is not None and is_overdue(self.lease.record, time.time()):
            self._runner.dismiss(seat)
            await self._expire(seat, step, progress)
            return True
        if step.picture is not None and self.lease.record.spec.preview.interval:
            await self._preview(seat, step)
        milestone = pace.scale_ended or step.state is not None or step.control_version != self._told_version
        self._told_version = step.control_version
        if milestone or now - self._progress_at >= self._settings.progress_seconds:
            self._progress_at = now
            await self.lease.append(job_pb2.JobEvent(job_state=job_pb2.JOB_STATE_RUNNING, progress=progress))
        if step.state is not None:
            await self._keep(seat, step, step.state, progress)
        elif self._checkpointing is None and self._checkpoint_pace.is_due(step.report.iteration, now):
            self._checkpoint_pace.asked(step.report.iteration, now)
            self._runner.snapshot(seat)
        return False

    async def _keep(self, seat: Seat, step: Step, state: SessionState, progress: job_pb2.Progress) -> None:
        """Stores a checkpoint beside the computing, or before letting the job go."""
        await self._checkpoint_ended()
        self._checkpointing = asyncio.create_task(self._save(step, state, progress))
        self._checkpointing.add_done_callback(self._checkpoint_done)
        if step.picture is not None or not deadline_of(self.lease.record):  # else one with a picture is to come
            await self._leave_if_wanted(seat)

    async def _leave_if_wanted(self, seat: Seat) -> None:
        """Lets the job go, if its client or this server wants that, now that its state is in store."""
        if not self._leaves:
            return
        self._runner.dismiss(seat)
        await self._checkpoint_ended()
        if self._leaves_for is not None:
            await self.lease.hand_back(self._leaves_for)
        else:
            await self.lease.pause_or_hand_back()
        raise _Released

    @property
    def _leaves(self) -> bool:
        """Whether its client or this server wants to let the job go."""
        return self._leaves_for is not None or self.lease.record.control.paused

    async def _checkpoint_ended(self) -> None:
        if self._checkpointing is not None:
            await asyncio.wait({self._checkpointing})

    async def _save(self, step: Step, state: SessionState, progress: job_pb2.Progress) -> None:
        started = time.monotonic()
        data = await asyncio.to_thread(checkpoint.dumps, state)
        about = Checkpoint(
            iteration=step.report.iteration, control_version=step.control_version, run_seconds=self._run_seconds
        )
        if step.picture is not None and self._leaves and deadline_of(self.lease.record):
            with contextlib.suppress(StoreFull):
                picture = await self._pictures.result(step, progress, self._run_seconds, room_seconds=0.0)
                about.picture.CopyFrom(picture)
        await self.lease.save_checkpoint(data, about)
        cost = time.monotonic() - started
        metrics.CHECKPOINT_SECONDS.observe(cost)
        self._checkpoint_pace.stored(cost)

    def _checkpoint_done(self, task: asyncio.Task[None]) -> None:
        self._checkpointing = None
        if not task.cancelled() and task.exception() is not None:
            log.warning("checkpoint not stored", extra={**self.about(), "error": repr(task.exception())})

    async def _preview(self, seat: Seat, step: Step) -> None:
        preview = await self._obeying(seat, self._pictures.preview(step))
        if preview is None:
            return
        await self.lease.append(job_pb2.JobEvent(job_state=job_pb2.JOB_STATE_RUNNING, preview=preview))
        if step.report.iteration == 1:
            metrics.FIRST_PREVIEW_SECONDS.observe(self.age())

    async def _finish(self, seat: Seat, step: Step, progress: job_pb2.Progress) -> None:
        assert step.report.stop_reason is not None
        result = await self._store_result(seat, step, progress)
        result.stop_reason = job_pb2.StopReason.Value(f"STOP_REASON_{step.report.stop_reason.name}")
        await self.lease.append(job_pb2.JobEvent(job_state=job_pb2.JOB_STATE_SUCCEEDED, result=result))
        await self.lease.close()
        metrics.JOB_RUN_SECONDS.observe(self._run_seconds)
        log.info("job succeeded", extra={**self.about(), "run_seconds": round(self._run_seconds, 3)})

    async def _expire(self, seat: Seat, step: Step, progress: job_pb2.Progress) -> None:
        """Ends the job out of time, with its picture as it is; what diverged is undone in it already."""
        result = await self._store_result(seat, step, progress)
        await self.lease.fail(deadline_error(self.lease.record, result))
        log.info("job out of time", extra={**self.about(), "iteration": step.report.iteration})

    async def _store_result(self, seat: Seat, step: Step, progress: job_pb2.Progress) -> job_pb2.Result:
        await self._checkpoint_ended()
        result = await self._obeying(seat, self._pictures.result(step, progress, self._run_seconds))
        await self.lease.append(job_pb2.JobEvent(job_state=job_pb2.JOB_STATE_RUNNING, progress=progress))
        return result

    async def _failed(self, error: Exception) -> None:
        log.error("job failed", extra=self.about(), exc_info=error)
        await self._checkpoint_ended()
        with contextlib.suppress(Superseded):
            try:
                await self._leave_after(error)
            except StoreFull:
                await self.lease.step_back()

    async def _leave_after(self, error: Exception) -> None:
        """Fails the job, or leaves it to another attempt that may do better."""
        if is_device_failure(error):
            await self.lease.abandon()
        elif isinstance(error, DeviceLost):
            await self.lease.hand_back("the model server has lost its device")
        elif is_out_of_memory(error) and not self.lease.record.lease.alone:
            await self.lease.hand_back("ran out of memory; is tried again alone and in smaller tiles", alone=True)
        elif left_to := await self._left_to(error):
            await self.lease.hand_back(f"is left to a model server {left_to}")
        else:
            failure = describe_failure(error)
            told = job_pb2.JobError(code=failure.code, reason=failure.reason, message=failure.message)
            await self.lease.fail(told)

    async def _left_to(self, error: Exception) -> str:
        """Leaves the job to others if some can do what this one cannot: what sets those apart, or nothing."""
        job_id, options = self.lease.job_id, self.lease.record.spec.options
        if isinstance(error, WeightsError) and await self._others.leave_model(options.model):
            return f"that has the weights of {options.model}"
        if isinstance(error, DetectorError) and await self._others.leave_faces(job_id, options.model):
            return "that can find faces"
        if isinstance(error, BudgetError) and await self._others.leave_large(
            job_id, options.model, faces=options.faces
        ):
            return "with a larger memory budget"
        return ""

    def age(self) -> float:
        return time.time() - self.lease.record.create_time.ToMicroseconds() / 1e6

    def about(self) -> dict[str, Any]:
        record = self.lease.record
        return {"job_id": record.job_id, "attempt": self.lease.attempt}


def pixels_of(spec: job_pb2.JobSpec) -> int:
    """The pixels that a job looks at, styles at their scales among them, as those of one picture and one style."""
    styles = sum(style_scale(style) ** 2 for style in spec.styles) or 1.0
    return int(spec.options.size**2 * (1.0 + styles) / 2)
