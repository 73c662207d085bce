"""A model package as ONNX files that any runtime runs, sessions that serve them, and TensorRT engines made of them."""
