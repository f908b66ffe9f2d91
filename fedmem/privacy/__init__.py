"""Differential privacy of private blocks: plan, noise stream, clipped gradients, accounting, ledger."""
