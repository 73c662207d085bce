"""TensorRT: which ops it takes, plugins of our kernels, and engines made of an export."""
