"""What the server answers: predictions, Open Inference Protocol, gRPC, control, metrics."""
