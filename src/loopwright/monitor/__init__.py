"""Stage 5, monitor: inputs, outputs, drift, quality and decay, alerts, reasons to retrain."""
