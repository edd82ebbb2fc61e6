"""Models on this box: onnxruntime, the queue in front of it, the generator in its own process."""
