"""CachedAttention for NVIDIA GPUs: Triton kernels, the plan of their launches, compiled sets."""
