"""The coordinator as deployed: never installed, only bundled."""
