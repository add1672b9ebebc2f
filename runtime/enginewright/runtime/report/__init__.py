"""One page about an artifact, for those who decide and those who debug."""
