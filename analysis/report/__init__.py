"""One page that shows what was learned."""
