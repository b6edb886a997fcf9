"""Labels that cost nothing: slice position, patient."""
