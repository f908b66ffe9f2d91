"""Simulated federations: scenarios, populations, runs from text to receipt, reports."""
