"""Which rows run when, and the loop that runs them."""
