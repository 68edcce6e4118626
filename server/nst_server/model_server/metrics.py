"""The Prometheus metrics of a model server."""

from prometheus_client import Counter, Gauge, Histogram

JOB_SECONDS = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600)
STEP_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
NAMED_TENANTS = 100

JOB_QUEUE_SECONDS = Histogram(
    "nst_job_queue_seconds", "From the job's creation to its first attempt.", buckets=(0.01, 0.05, 0.1, *JOB_SECONDS)
)
JOB_RUN_SECONDS = Histogram("nst_job_run_seconds", "Computing time of jobs that succeeded.", buckets=JOB_SECONDS)
FIRST_PREVIEW_SECONDS = Histogram(
    "nst_first_preview_seconds", "From the job's creation to its first preview.", buckets=(0.1, 0.2, *JOB_SECONDS)
)
ITERATION_SECONDS = Histogram("nst_iteration_seconds", "One iteration of one batch.", buckets=STEP_SECONDS)
BATCH_SIZE = Histogram("nst_batch_size", "Jobs advanced together by one iteration.", buckets=(1, 2, 4, 8, 16, 32))
DEVICE_SECONDS = Counter(
    "nst_device_seconds", "Time on the device, by tenant; those beyond the first hundred are 'other'.", ["tenant"]
)
ITERATIONS = Counter("nst_engine_iterations", "Iterations, over all jobs.")
DEVICE_MEMORY = Gauge("nst_device_memory_bytes", "Memory in use on the device; on a CPU, of the process.")
CHECKPOINT_SECONDS = Histogram("nst_checkpoint_seconds", "Packing and storing one checkpoint.", buckets=STEP_SECONDS)

_named_tenants: set[str] = set()


def device_seconds(tenant: str) -> Counter:
    """The counter of a tenant's time on the device; those beyond the first hundred have one together."""
    if len(_named_tenants) < NAMED_TENANTS:
        _named_tenants.add(tenant)
    return DEVICE_SECONDS.labels(tenant if tenant in _named_tenants else "other")
