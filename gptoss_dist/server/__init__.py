"""The OpenAI API over an engine: HTTP on rank 0, the engine on all ranks."""
