"""Artifacts in OCI registries: a layer for each file, so that what two share travels once."""
