"""What could keep a run from starting, or make it slow: looked at one by one before hours are spent on it."""
