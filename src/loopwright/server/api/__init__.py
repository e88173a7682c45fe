"""The server's APIs: predictions, Open Inference Protocol, gRPC, control, metrics."""
