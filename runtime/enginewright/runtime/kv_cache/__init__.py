"""Where the keys and values of rows live: who holds what, what is shared, what must move."""
