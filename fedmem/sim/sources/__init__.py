"""Where a simulation finds its text: installed corpora, generators with a seed, and the user's own files."""
