"""OpenAI's Responses API (text and functions) on top of the chat endpoint."""
