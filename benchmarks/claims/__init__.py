"""The paper's claims in miniature, on real text: `python -m benchmarks.claims --json [--quick]`."""
