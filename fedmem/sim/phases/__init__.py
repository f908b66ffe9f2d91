"""The phases of a run, one module each. A phase is a function that takes the simulation and returns its facts."""
