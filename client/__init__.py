"""The device as deployed: never installed, only bundled."""
