"""The server: a gateway that speaks gRPC, model servers that compute, and JetStream between them."""
