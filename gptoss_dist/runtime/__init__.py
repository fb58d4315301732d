"""Ranks that work together: joining, exchanging objects, watching each other, agreeing, ending together."""
