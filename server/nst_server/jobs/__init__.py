"""Jobs on JetStream: records, tickets, events, pictures, checkpoints. No gRPC and no torch."""
