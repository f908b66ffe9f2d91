"""Memory blocks outside the anchor: their formula, their place in the model, their bank on disk."""
