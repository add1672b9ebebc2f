"""A linear layer whose weight stands in blocks of small integers."""
