"""ONNX graphs: sessions, feeds, the check before loading, contributions of features."""
