"""CachedAttention: attention over a block-table cache, the one op that every target lowers."""
