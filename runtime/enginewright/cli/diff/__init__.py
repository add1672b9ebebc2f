"""``enginewright diff``: what differs between two artifacts, and whether it may."""
