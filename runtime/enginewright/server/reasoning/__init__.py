"""What a model thinks before it answers, split off its answer."""
