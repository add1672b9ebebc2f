"""Engines for NVIDIA GPUs: TensorRT-RTX, which needs no GPU to build them, and TensorRT."""
