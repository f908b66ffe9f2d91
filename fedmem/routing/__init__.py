"""Embedders, the cluster tree and the router: which blocks belong to a text."""
