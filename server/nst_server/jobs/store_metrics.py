"""The Prometheus metrics of what jobs leave in the store, which gateways keep."""

from prometheus_client import Counter, Gauge

REMOVED = Counter("nst_removed", "Parts of jobs removed from the store, by what they were.", ["kind"])
STORE_BYTES = Gauge("nst_store_bytes", "Size of what is stored, by NATS's stream.", ["stream"])
