"""The gateway: gRPC in front of the job store. No torch, and no state that outlives a call."""
