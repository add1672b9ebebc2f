"""Graph -> graph, one file a pass; the order in which a target runs them is in its own file."""
