"""Plans: which part of the model lies on which rank. Pure arithmetic, no torch."""
