"""What the tiles themselves say about how far to trust a score: copies, leaks, shortcuts, shift."""
