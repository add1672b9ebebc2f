"""Who made an artifact, from what; and whether it may be used here."""
