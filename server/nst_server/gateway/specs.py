"""From what a client asks for to what is stored: every picture a reference, every option filled in."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple

from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2

from nst.v1 import image_pb2, job_pb2, options_pb2
from nst_engine.options import (
    STYLE_SCALES,
    WEIGHTS,
    OptionError,
    StylizeOptions,
    checked,
    checked_shares,
    ranges,
    steered,
)
from nst_server import pictures
from nst_server.config import GatewaySettings
from nst_server.gateway.errors import PicturePath, Refusal, invalid
from nst_server.gateway.fair_places import FairPlaces
from nst_server.gateway.fields import check_digest, check_form
from nst_server.gateway.quotas import PictureQuota
from nst_server.gateway.shared_cache import SharedCache
from nst_server.jobs.backbone import BackboneUnavailable
from nst_server.jobs.blobs import KEPT_SECONDS, PictureStore
from nst_server.options import options_from_proto, options_to_proto, steering_from_proto, style_scale

STYLE_MASKS: tuple[Literal["region", "source_region"], ...] = ("region", "source_region")
COMPLETE_SECONDS = KEPT_SECONDS / 2  # the rest is for making the job: until then nothing else holds its pictures
CHECKS_AT_ONCE = 2  # a picture being checked is held decoded
KNOWN_MASKS = 10_000


class Supply(NamedTuple):
    """Where the pictures of a spec come from: whose they are, and the attached ones' stored forms by name."""

    tenant: str
    attached: Mapping[str, bytes]


class SpecReader:
    """Validates and completes job specs, and stores the pictures that they carry."""

    def __init__(
        self,
        stored: Callable[[str], PictureStore],
        quota: PictureQuota,
        settings: GatewaySettings,
        limits: pictures.PictureLimits,
    ) -> None:
        """`stored` gives a tenant's pictures."""
        self._stored = stored
        self._quota = quota
        self._settings = settings
        self._unset = defaults(settings)
        self._ranges = allowed_ranges(settings)
        self._limits = limits
        self._checking = FairPlaces(CHECKS_AT_ONCE)
        self._masks = SharedCache[bool](KNOWN_MASKS, lambda _: 1)  # which pictures were found to be masks, by digest

    def check(self, spec: job_pb2.JobSpec) -> job_pb2.JobSpec:
        """The spec as it is stored, but without its pictures, which cost more to check.

        Raises:
            Refusal: a field is wrong or over a limit.
        """
        options = self._options(spec)
        _check_initial(spec, options)
        _check_hole(spec, options)
        self._check_styles(spec)
        return job_pb2.JobSpec(
            options=options_to_proto(options),
            preview=self._preview(spec.preview),
            result_format=_form("spec.result_format", spec.result_format),
            priority=_priority(spec.priority),
            time_limit=self._time_limit(spec),
        )

    async def complete(
        self, tenant: str, spec: job_pb2.JobSpec, bare: job_pb2.JobSpec, attached: Mapping[str, bytes]
    ) -> job_pb2.JobSpec:
        """The spec as it is stored.

        Args:
            tenant: whose pictures they are.
            spec: as it came.
            bare: what `check` made of it.
            attached: the stored forms of attached pictures by name.

        Raises:
            Refusal: a picture is wrong or over a limit.
        """
        try:
            async with asyncio.timeout(COMPLETE_SECONDS):
                return await self._complete(spec, bare, Supply(tenant, attached))
        except TimeoutError as error:
            raise BackboneUnavailable(f"the pictures were not all stored in {COMPLETE_SECONDS:g} s") from error

    async def _complete(self, spec: job_pb2.JobSpec, bare: job_pb2.JobSpec, supply: Supply) -> job_pb2.JobSpec:
        complete = job_pb2.JobSpec()
        complete.CopyFrom(bare)
        complete.content.CopyFrom(await self._reference("spec.content", spec.content, supply))
        for index, style in enumerate(spec.styles):
            complete.styles.append(await self._style(f"spec.styles[{index}]", style, supply))
        if spec.HasField("initial"):
            complete.initial.CopyFrom(await self._reference("spec.initial", spec.initial, supply))
        if spec.HasField("subject"):
            complete.subject.CopyFrom(await self._mask("spec.subject", spec.subject, supply))
        if spec.HasField("hole"):
            complete.hole.CopyFrom(await self._mask("spec.hole", spec.hole, supply))
        return complete

    def _options(self, spec: job_pb2.JobSpec) -> StylizeOptions:
        asked = options_pb2.StylizeOptions(size=self._unset.size, iterations=self._unset.iterations)
        if spec.HasField("initial"):
            asked.init = options_pb2.INIT_IMAGE
        asked.MergeFrom(spec.options)
        # The engine's own ranges are wider, and an error with those would ask for what is refused next.
        self._check_range("spec.options", "size", asked.size)
        self._check_range("spec.options", "iterations", asked.iterations)
        try:
            options = options_from_proto(asked)
        except OptionError as error:
            raise invalid(f"spec.options.{error.field}", error.message, "BAD_OPTION") from error
        return options

    def _check_range(self, path: str, name: str, value: int) -> None:
        low, high = self._ranges[name]
        if not low <= value <= high:
            limit = f"; this server's limit is max_{name} = {high:g}" if value > high else ""
            text = f"must be from {low:g} to {high:g}, not {value}{limit}"
            raise invalid(f"{path}.{name}", text, "BAD_OPTION")

    def check_update(self, job: job_pb2.Job, update: job_pb2.JobUpdate) -> None:
        """Refuses a steering that the job cannot follow.

        Raises:
            Refusal: a value is out of range or over a limit, or not of the kind that the job has.
        """
        if update.content_layers and job.spec.HasField("hole"):
            raise invalid("update.content_layers", "this job fills a hole, which has no content loss")
        if update.HasField("iterations"):
            self._check_range("update", "iterations", update.iterations)
        changes = steering_from_proto(update)
        try:
            if "style_shares" in changes:
                checked_shares(changes.pop("style_shares"), len(job.spec.styles))
            steered(options_from_proto(job.spec.options), changes)
        except OptionError as error:
            raise invalid(f"update.{error.field}", error.message, "BAD_OPTION") from error
        if update.priority and update.priority not in job_pb2.Priority.values():
            raise invalid("update.priority", f"{update.priority} is no priority")

    def _time_limit(self, spec: job_pb2.JobSpec) -> Duration | None:
        if not spec.HasField("time_limit"):
            return None
        nanoseconds = spec.time_limit.ToNanoseconds()
        limit = self._settings.max_time_limit_seconds
        if not 0 < nanoseconds <= limit * 10**9:
            text = f"must be above 0 s and at most max_time_limit_seconds = {limit}, not {nanoseconds / 1e9:g} s"
            raise invalid("spec.time_limit", text)
        time_limit = Duration()
        time_limit.FromNanoseconds(nanoseconds)
        return time_limit

    def _check_styles(self, spec: job_pb2.JobSpec) -> None:
        if not spec.styles and not spec.HasField("hole"):
            raise invalid("spec.styles", "is empty: give at least one style picture, or a hole to fill")
        if len(spec.styles) > self._settings.max_styles:
            raise invalid(
                "spec.styles",
                f"has {len(spec.styles)} pictures, over the limit max_styles = {self._settings.max_styles}",
            )
        for index, style in enumerate(spec.styles):
            _check_style(f"spec.styles[{index}]", style)

    def _preview(self, preview: job_pb2.PreviewOptions) -> job_pb2.PreviewOptions:
        smallest = self._limits.min_image_side
        if preview.HasField("max_size") and preview.max_size < smallest:
            raise invalid("spec.preview.max_size", f"must be at least {smallest}, not {preview.max_size}")
        return job_pb2.PreviewOptions(
            interval=preview.interval if preview.HasField("interval") else self._settings.preview_interval,
            max_size=preview.max_size if preview.HasField("max_size") else None,
            format=_form("spec.preview.format", preview.format),
        )

    async def _style(self, path: str, style: job_pb2.Style, supply: Supply) -> job_pb2.Style:
        complete = job_pb2.Style(
            image=await self._reference(f"{path}.image", style.image, supply),
            weight=style.weight if style.HasField("weight") else 1.0,
            scale=style_scale(style),
        )
        for name in STYLE_MASKS:
            if style.HasField(name):
                mask = await self._mask(f"{path}.{name}", getattr(style, name), supply)
                getattr(complete, name).CopyFrom(mask)
        return complete

    async def _mask(self, path: str, image: image_pb2.Image, supply: Supply) -> image_pb2.Image:
        """As `_reference`, of a picture that marks something."""
        mask = await self._reference(path, image, supply)
        checked = partial(self._checking.run, supply.tenant, partial(self._check_mask, supply.tenant, mask))
        try:
            await self._masks.get(mask.reference.sha256, checked)
        except pictures.PictureError as error:
            raise invalid(path, error.message, error.reason) from error
        return mask

    async def _check_mask(self, tenant: str, mask: image_pb2.Image) -> bool:
        stored = await self._stored(tenant).get(mask.reference.sha256)
        await asyncio.to_thread(pictures.check_mask, stored, pictures.STORED)
        return True

    async def _reference(self, path: str, image: image_pb2.Image, supply: Supply) -> image_pb2.Image:
        source = image.WhichOneof("source")
        if source is None:
            raise invalid(path, "is empty: give a tensor, an encoded picture or a reference")
        if source == "reference":
            return await self._known(f"{path}.reference.sha256", image, supply.tenant)
        if source == "attached":
            if image.attached.name not in supply.attached:
                raise invalid(f"{path}.attached", "pictures are attached to Stylize only: upload it, or send it inline")
            stored, place = supply.attached[image.attached.name], attached_path(path)
        else:
            place = PicturePath(f"{path}.{source}.data", f"{path}.{source}")
            try:
                stored = pictures.stored_bytes(image.tensor if source == "tensor" else image.encoded)
            except pictures.PictureError as error:
                raise place.refusal(error) from error
        digest, _, _ = await self.store(supply.tenant, place, stored)
        return image_pb2.Image(reference=image_pb2.ImageReference(sha256=digest))

    async def _known(self, path: str, image: image_pb2.Image, tenant: str) -> image_pb2.Image:
        check_digest(path, image.reference.sha256)
        if not await self._stored(tenant).keep(image.reference.sha256):
            text = f"no picture {image.reference.sha256} is stored: upload it"
            raise Refusal(code_pb2.NOT_FOUND, "PICTURE_NOT_FOUND", f"{path}: {text}", {path: text})
        return image

    async def store(self, tenant: str, place: PicturePath, stored: bytes) -> tuple[str, int, int]:
        """Checks a picture and stores it for a tenant: its digest, width and height.

        Raises:
            Refusal: it is not one, or over a limit.
        """
        check = partial(asyncio.to_thread, pictures.check, stored, self._limits)
        try:
            width, height = await self._checking.run(tenant, check)
        except pictures.PictureError as error:
            raise place.refusal(error) from error
        digest = await self._stored(tenant).put(stored, admit=partial(self._quota.take, tenant))
        return digest, width, height


def images_of(spec: job_pb2.JobSpec) -> dict[str, image_pb2.Image]:
    """Every picture that a spec has, by the path of its field."""
    images = {f"spec.{name}": getattr(spec, name) for name in ("content", "initial", "subject", "hole")}
    for index, style in enumerate(spec.styles):
        images |= {f"spec.styles[{index}].{name}": getattr(style, name) for name in ("image", *STYLE_MASKS)}
    return {path: image for path, image in images.items() if image.WhichOneof("source") is not None}


def reduce_to_references(spec: job_pb2.JobSpec, complete: job_pb2.JobSpec) -> job_pb2.JobSpec:
    """Puts the references of the completed spec in the place of the pictures that a client sent.

    What is left says what was asked for, however the pictures came and whatever the defaults are by now.
    """
    references = images_of(complete)
    for path, image in images_of(spec).items():
        image.CopyFrom(references[path])
    spec.DiscardUnknownFields()
    return spec


def defaults(settings: GatewaySettings) -> StylizeOptions:
    """What unset options mean: the engine's defaults, but nothing over this server's limits."""
    engine = StylizeOptions()
    return replace(
        engine,
        size=min(engine.size, settings.max_size),
        iterations=min(engine.iterations, settings.max_iterations),
    )


def allowed_ranges(settings: GatewaySettings) -> dict[str, tuple[float, float]]:
    """What numeric options may be: the engine's ranges, but nothing over this server's limits."""
    most = {"size": settings.max_size, "iterations": settings.max_iterations}
    return {name: (low, min(high, most.get(name, high))) for name, (low, high) in ranges().items()}


def attached_path(path: str) -> PicturePath:
    """Where the picture at `path` is, when its bytes come in chunks."""
    return PicturePath(f"{path}.attached", f"{path}.attached.header.tensor")


def _check_style(path: str, style: job_pb2.Style) -> None:
    try:
        if style.HasField("weight"):
            checked("weight", style.weight, WEIGHTS)
        if style.HasField("scale"):
            checked("scale", style.scale, STYLE_SCALES)
    except OptionError as error:
        raise invalid(f"{path}.{error.field}", error.message) from error
    if style.HasField("weight") and not style.weight:
        raise invalid(f"{path}.weight", "must be above 0: a style that does not count is one to leave out")


def _check_initial(spec: job_pb2.JobSpec, options: StylizeOptions) -> None:
    if options.init == "image" and not spec.HasField("initial"):
        raise invalid("spec.initial", "is unset, but init is INIT_IMAGE: give the picture to start from")
    if options.init != "image" and spec.HasField("initial"):
        raise invalid("spec.options.init", "must be INIT_IMAGE or unset, because spec.initial is given")


def _check_hole(spec: job_pb2.JobSpec, options: StylizeOptions) -> None:
    if not spec.HasField("hole"):
        return
    if spec.HasField("subject") or options.faces:
        raise invalid("spec.hole", "cannot be combined with a subject or faces: what is outside the hole stays anyway")
    if not any(options.style_layers.values()):
        raise invalid("spec.options.style_layers", "has no weight above 0, and nothing else fills a hole")


def _form(path: str, form: image_pb2.ImageFormat) -> image_pb2.ImageFormat:
    check_form(path, form)
    if form.WhichOneof("form") is None:
        return image_pb2.ImageFormat(encoded=image_pb2.EncodedFormat(codec=image_pb2.CODEC_PNG))
    return form


def _priority(priority: "job_pb2.Priority.ValueType") -> "job_pb2.Priority.ValueType":
    if priority not in job_pb2.Priority.values():
        raise invalid("spec.priority", f"{priority} is no priority: leave it unset, or use INTERACTIVE or BATCH")
    return priority or job_pb2.PRIORITY_INTERACTIVE
