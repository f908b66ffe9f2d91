"""The utility of a private block at a privacy budget: `python -m benchmarks.private_utility`."""
