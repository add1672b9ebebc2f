"""Operators over each row of activations: a residual sum with its norm, a gated activation."""
