"""The phases of a run, one module each: a function from the simulation to the facts it found."""
