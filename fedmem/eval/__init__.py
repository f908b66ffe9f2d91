"""Measurements: loss on held-out text, facts, unlearning metrics, and the privacy audit."""
