"""``semicon demo``: a synthetic data set and the chain of commands from raw images to a table."""
