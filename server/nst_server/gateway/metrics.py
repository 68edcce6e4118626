"""The Prometheus metrics of a gateway."""

from prometheus_client import Counter, Gauge, Histogram

CALL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600, 3600)

QUEUE_DEPTH = Gauge("nst_queue_depth", "Jobs that wait, by priority.", ["priority"])
REFUSED = Counter("nst_refused", "Calls refused because a limit is reached.", ["limit"])
WATCHERS = Gauge("nst_watchers", "Open WatchJob and Stylize streams.")
PREVIEWS_DROPPED = Counter("nst_previews_dropped", "Previews sent without their picture to slow watchers.")
RPC_STARTED = Counter("grpc_server_started", "RPCs started.", ["grpc_type", "grpc_service", "grpc_method"])
RPC_HANDLED = Counter(
    "grpc_server_handled", "RPCs ended, by status.", ["grpc_type", "grpc_service", "grpc_method", "grpc_code"]
)
RPC_SECONDS = Histogram(
    "grpc_server_handling_seconds",
    "From the start of an RPC to its end.",
    ["grpc_type", "grpc_service", "grpc_method"],
    buckets=CALL_SECONDS,
)
