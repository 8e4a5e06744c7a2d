"""What is fast and what is not, measured against plain peers in the same run."""
