"""Where it runs: local Ray, Ray clusters, Slurm allocations."""
