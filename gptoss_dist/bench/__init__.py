"""Load, clock, statistics and tables of `gptoss bench`; the same for the engine here and for a server elsewhere."""
