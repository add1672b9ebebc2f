"""Text to tokens and back; conversations to prompts; what may be wrong with a prompt."""
