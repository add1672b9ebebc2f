"""Measurements of a built artifact, alone and beside other engines."""
