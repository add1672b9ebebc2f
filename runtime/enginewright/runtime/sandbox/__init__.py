"""A sandbox for chat templates: Jinja without a way out, within a budget of work."""
