"""Every setting of the server, with its default. The command line and NST_* variables come from here."""

import math
from dataclasses import dataclass, field, fields
from typing import Any

from nst_engine.networks import NETWORKS
from nst_engine.options import ranges

MIB = 2**20
GIB = 2**30
# The largest number of gRPC's options, and of a uint32 in a message.
GRPC_INTEGERS = 2**31 - 1
PROTO_INTEGERS = 2**32 - 1


def setting(default: Any, help: str, *, zero: bool = False, least: float = 0, most: float = math.inf) -> Any:
    """A field whose help the command line shows; `zero` is whether a number may be 0, and a text empty."""
    return field(default=default, metadata={"help": help, "zero": zero, "least": least, "most": most})


@dataclass(frozen=True)
class Settings:
    """What all settings have in common."""

    def __post_init__(self) -> None:
        """Raises `ValueError` for a number that is not finite, out of range, or 0 where that means nothing."""
        for one in fields(self):
            value, zero = getattr(self, one.name), one.metadata["zero"]
            least, most = one.metadata["least"], one.metadata["most"]
            if not isinstance(value, int | float):
                continue
            if not (0 < value < math.inf or (zero and value == 0)):
                raise ValueError(f"{one.name}: must be {'at least' if zero else 'above'} 0, not {value:g}")
            if not least <= value <= most:
                allowed = f"at least {least:.10g}" if most == math.inf else f"from {least:.10g} to {most:.10g}"
                raise ValueError(f"{one.name}: must be {allowed}, not {value:.10g}")


@dataclass(frozen=True)
class StoreSettings(Settings):
    """What the job store may hold, and for how long."""

    retention_hours: float = setting(168.0, "A job is removed, with all that it has, this long after it ended.")
    orphan_hours: float = setting(24.0, "An uploaded picture that no job uses is removed after this long.")
    max_queued_jobs: int = setting(1000, "Jobs waiting or running; more are refused.")
    max_tenant_jobs: int = setting(250, "A tenant's jobs waiting or running; more are refused.")
    max_tenant_running_jobs: int = setting(
        100,
        "A tenant's jobs that run at once, of one priority, on all model servers, and as many of pictures above "
        "1024 px besides; more wait, none is refused.",
    )
    max_tenant_paused_jobs: int = setting(50, "A tenant's jobs that are paused; no more can be.", zero=True)
    max_record_bytes: int = setting(GIB // 4, "Size of the job records, and of the notes beside them.")
    max_event_bytes: int = setting(4 * GIB, "Size of all histories.")
    max_picture_bytes: int = setting(16 * GIB, "Size of all stored pictures.")
    max_preview_bytes: int = setting(4 * GIB, "Size of all previews; the oldest make room for new ones.")
    max_checkpoint_bytes: int = setting(16 * GIB, "Size of all checkpoints.")
    lease_seconds: float = setting(10.0, "A model server silent for this long loses its jobs.")
    replicas: int = setting(1, "Copies of everything that NATS keeps; 3 in a cluster of three.")


@dataclass(frozen=True)
class GatewaySettings(Settings):
    """What the gateway accepts."""

    max_message_bytes: int = setting(32 * MIB, "Largest gRPC message, either way.", most=GRPC_INTEGERS)
    max_image_bytes: int = setting(64 * MIB, "Largest uploaded picture, in bytes.")
    max_image_pixels: int = setting(50_000_000, "Largest uploaded picture, in pixels.")
    max_upload_bytes: int = setting(
        512 * MIB,
        "Memory for all uploads in flight, of which one may have half and the others of its tenant a quarter, and as "
        "much for requests that bring their pictures along, and chunks that wait.",
    )
    max_result_bytes: int = setting(512 * MIB, "Memory for all results being sent; those of one tenant get half.")
    max_watch_bytes: int = setting(
        512 * MIB,
        "Memory for events that watchers have not taken yet; those of one tenant get half. Beyond it they come without "
        "their pictures.",
    )
    result_timeout_seconds: float = setting(600.0, "A result that its client has not taken after this long is dropped.")
    picture_cache_bytes: int = setting(64 * MIB, "Memory for pictures that are kept to be sent again.", zero=True)
    max_job_changes: int = setting(
        5000,
        "Pauses of a job, and changes of its weights and iterations; then it may only be resumed, moved in the queue "
        "or cancelled.",
    )
    max_styles: int = setting(8, "Style pictures of one job.")
    preview_interval: int = setting(
        10, "Iterations between previews when the client does not say.", zero=True, most=PROTO_INTEGERS
    )
    max_size: int = setting(2048, "Largest long side of a result, in pixels.", least=ranges()["size"][0])
    max_iterations: int = setting(5000, "Iterations of one job.")
    max_time_limit_seconds: int = setting(7 * 24 * 3600, "Longest time limit of a job that has one.")
    max_streams: int = setting(1000, "Open calls on one connection.")
    max_tenant_bytes: int = setting(
        4 * GIB, "Pictures and results that a tenant may have stored; each counts in whole chunks of 512 KiB."
    )
    max_tenant_requests_per_second: int = setting(
        200, "Calls, and messages to jobs, of a tenant to one gateway; two seconds' worth may come at once."
    )
    max_tenant_calls: int = setting(2500, "Open calls of a tenant on one gateway, watchers among them.")
    max_open_watches: int = setting(5000, "Watchers and Stylize streams on one gateway.")
    heartbeat_seconds: float = setting(
        15.0, "A silent stream is sent a heartbeat this often: clients take 45 s of silence for a lost one.", most=20.0
    )
    upload_timeout_seconds: float = setting(60.0, "An upload that is silent for this long is dropped.")
    min_upload_bytes_per_second: int = setting(
        16 * 1024,
        "An upload slower than this is dropped, upload_timeout_seconds after its first bytes at the soonest.",
        zero=True,
    )
    drain_seconds: float = setting(10.0, "How long open calls may take after SIGTERM.", zero=True)


@dataclass(frozen=True)
class ModelServerSettings(Settings):
    """How a model server works."""

    device: str = setting("auto", "What to compute on: auto, cpu, cuda, cuda:1 ...")
    threads: int = setting(0, "CPU threads of torch; 0 means one per core.", zero=True)
    memory_budget_bytes: int = setting(
        0,
        "Memory for the network's maps; larger pictures are worked on in tiles. 0 means a quarter of what is free.",
        zero=True,
    )
    memory_limit_bytes: int = setting(
        0,
        "Memory for all jobs worked on side by side; more wait. 0 means 70 % of what is free at the start.",
        zero=True,
    )
    max_running_jobs: int = setting(
        0,
        "A tenant's jobs worked on side by side, of one priority, and as many of pictures above 1024 px besides. "
        "0 means 2 on a CPU and 16 on a GPU.",
        zero=True,
    )
    max_prepared_bytes: int = setting(
        GIB,
        "Pictures and checkpoints read for jobs whose work has not begun, and as much for those above 1024 px; beyond "
        "it nothing more is read, and no more jobs are taken.",
    )
    max_batch: int = setting(
        0,
        "Jobs of one shape turned together as one batch. 0 means 1 on a CPU, which gains nothing, and 16 on a GPU.",
        zero=True,
    )
    tenant_weights: str = setting(
        "", "Tenants' shares of the device, such as name=2,other=0.5; 1 for those that are not named."
    )
    max_lost_attempts: int = setting(2, "A job whose model server dies this often, without it getting on, is failed.")
    stall_seconds: float = setting(
        300.0,
        "A model server that is at one iteration for this long ends, and leaves its jobs to others; pictures of more "
        "than a megapixel, and jobs whose iterations have been slow before, are given longer.",
    )
    weights_seconds: float = setting(600.0, "How long a job waits for a network's weights to be fetched and read.")
    checkpoint_seconds: float = setting(
        0.0,
        "A job's own time on the device between its checkpoints, up to twice that where they are slow; 0 is 4 s on a "
        "CPU and 0.5 on a GPU.",
        zero=True,
    )
    progress_seconds: float = setting(0.1, "Shortest time between progress events of a job.", zero=True)
    hand_back_seconds: float = setting(30.0, "How long handing back jobs may take after SIGTERM.", zero=True)
    warm_models: str = setting(
        "vgg16-caffe", "Models to load before work starts, separated by commas; empty is none.", zero=True
    )

    def __post_init__(self) -> None:
        """Raises `ValueError`, also unless `tenant_weights` and `warm_models` can be read."""
        super().__post_init__()
        parse_weights(self.tenant_weights)
        parse_models(self.warm_models)


def parse_weights(text: str) -> dict[str, float]:
    """Tenants' weights out of "name=2,other=0.5".

    Raises:
        ValueError: it is not of this form, or a weight is not finite and above 0.
    """
    weights = {}
    for entry in filter(None, text.split(",")):
        name, _, number = entry.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not name or not 0 < weight < math.inf:
            raise ValueError(f"tenant_weights: {entry!r} is not NAME=WEIGHT with a weight above 0")
        weights[name.strip()] = weight
    return weights


def parse_models(text: str) -> list[str]:
    """Models out of "vgg16-caffe,resnet50-torchvision".

    Raises:
        ValueError: there is no such model.
    """
    models = [name for part in text.split(",") if (name := part.strip())]
    for model in models:
        if model not in NETWORKS:
            raise ValueError(f"warm_models: must be of {', '.join(NETWORKS)}, not {model!r}")
    return models


def limits(settings: GatewaySettings, store: StoreSettings) -> dict[str, int]:
    """The limits that clients are told, by name."""
    named = {f.name: getattr(settings, f.name) for f in fields(settings) if f.name.startswith("max_")}
    shared = ("max_queued_jobs", "max_tenant_jobs", "max_tenant_running_jobs", "max_tenant_paused_jobs")
    return {**named, **{name: getattr(store, name) for name in shared}}
