"""Anthropic's Messages API (text and tools) on top of the chat endpoint."""
