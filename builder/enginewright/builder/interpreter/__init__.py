"""Runs a lowered graph on the CPU, op by op, where the device that it is for is not at hand."""
