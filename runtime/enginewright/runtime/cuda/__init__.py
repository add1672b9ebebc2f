"""CUDA through cuda-bindings' driver API: memory, streams, kernels, graphs. No torch."""
