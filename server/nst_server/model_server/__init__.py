"""The model server: leases jobs, runs them one iteration at a time, and writes their history."""
