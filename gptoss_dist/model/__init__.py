"""The model: its shapes, its checkpoints, and how they are loaded, made and checked."""
