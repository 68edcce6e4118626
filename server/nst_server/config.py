"""Every setting of the server, with its default. The command line and NST_* variables come from here."""

from dataclasses import dataclass, field, fields
from typing import Any

MIB = 2**20
GIB = 2**30


def setting(default: Any, help: str) -> Any:
    """A field whose help the command line shows."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class StoreSettings:
    """What the job store may hold, and for how long."""

    retention_hours: float = setting(168.0, "Jobs, histories and pictures are removed after this long.")
    max_queued_jobs: int = setting(1000, "Jobs waiting or running; more are refused.")
    max_tenant_jobs: int = setting(250, "A tenant's jobs waiting or running, of one priority; more are refused.")
    max_tenant_running_jobs: int = setting(
        100, "A tenant's jobs that run at once, of one priority, on all model servers; more wait, none is refused."
    )
    max_record_bytes: int = setting(1 * GIB, "Size of the job records.")
    max_event_bytes: int = setting(4 * GIB, "Size of all histories.")
    max_picture_bytes: int = setting(16 * GIB, "Size of all stored pictures.")
    max_preview_bytes: int = setting(4 * GIB, "Size of all previews; the oldest make room for new ones.")
    max_checkpoint_bytes: int = setting(16 * GIB, "Size of all checkpoints.")
    lease_seconds: float = setting(10.0, "A model server silent for this long loses its jobs.")
    replicas: int = setting(1, "Copies of everything that NATS keeps; 3 in a cluster of three.")


@dataclass(frozen=True)
class GatewaySettings:
    """What the gateway accepts."""

    max_message_bytes: int = setting(32 * MIB, "Largest gRPC message, either way.")
    max_image_bytes: int = setting(64 * MIB, "Largest uploaded picture, in bytes.")
    max_image_pixels: int = setting(50_000_000, "Largest uploaded picture, in pixels.")
    max_upload_bytes: int = setting(512 * MIB, "Memory for all uploads in flight; one upload may have half of it.")
    max_styles: int = setting(8, "Style pictures of one job.")
    preview_interval: int = setting(10, "Iterations between previews when the client does not say.")
    max_size: int = setting(2048, "Largest long side of a result, in pixels.")
    max_iterations: int = setting(5000, "Iterations of one job.")
    max_streams: int = setting(1000, "Open calls on one connection.")
    max_tenant_bytes: int = setting(
        4 * GIB, "Pictures and results that a tenant may have stored; each counts in whole chunks of 512 KiB."
    )
    max_tenant_requests_per_second: int = setting(
        200, "Calls of a tenant to one gateway, of which two seconds' worth may come at once."
    )
    max_open_watches: int = setting(5000, "Watchers and Stylize streams on one gateway.")
    heartbeat_seconds: float = setting(15.0, "A silent stream is sent a heartbeat this often.")
    upload_timeout_seconds: float = setting(60.0, "An upload that is silent for this long is dropped.")
    min_upload_bytes_per_second: int = setting(
        16 * 1024, "An upload slower than this is dropped, upload_timeout_seconds after its first bytes at the soonest."
    )
    drain_seconds: float = setting(10.0, "How long open calls may take after SIGTERM.")


@dataclass(frozen=True)
class ModelServerSettings:
    """How a model server works."""

    device: str = setting("auto", "What to compute on: auto, cpu, cuda, cuda:1 ...")
    threads: int = setting(0, "CPU threads of torch; 0 means one per core.")
    memory_budget_bytes: int = setting(
        0, "Memory for the network's maps; larger pictures are worked on in tiles. 0 means a quarter of what is free."
    )
    max_running_jobs: int = setting(2, "Jobs worked on side by side.")
    max_lost_attempts: int = setting(5, "A job whose model server dies this often is failed.")
    checkpoint_seconds: float = setting(4.0, "Time between checkpoints of a job; up to twice that when they are slow.")
    progress_seconds: float = setting(0.1, "Shortest time between progress events of a job.")
    hand_back_seconds: float = setting(30.0, "How long handing back jobs may take after SIGTERM.")
    warm_models: str = setting("vgg16-caffe", "Models to load before work starts, separated by commas.")


def limits(settings: GatewaySettings, store: StoreSettings) -> dict[str, int]:
    """The limits that clients are told, by name."""
    named = {f.name: getattr(settings, f.name) for f in fields(settings) if f.name.startswith("max_")}
    shared = ("max_queued_jobs", "max_tenant_jobs", "max_tenant_running_jobs")
    return {**named, **{name: getattr(store, name) for name in shared}}
