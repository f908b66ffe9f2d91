"""The sources of a simulation's text: installed corpora, generators with a seed, and the user's own files."""
