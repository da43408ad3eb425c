"""What a span needs in memory, and what fits: computed from headers, without torch."""
