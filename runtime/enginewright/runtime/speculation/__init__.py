"""Speculative decoding: tokens are guessed cheaply, and many are checked by one step."""
