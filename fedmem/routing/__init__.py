"""Embedders, the cluster tree and the router: they decide which blocks belong to a text."""
