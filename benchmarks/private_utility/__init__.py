"""What a private block is worth at a privacy budget: `python -m benchmarks.private_utility`."""
