"""Preflight checks: would a run work here? Each problem is named with its remedy."""
