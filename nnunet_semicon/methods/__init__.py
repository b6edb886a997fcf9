"""One file per method; each holds its formula-free wiring of losses and networks."""
