"""Beam search: the likeliest continuations as wholes, by vLLM's rules or by Hugging Face's."""
