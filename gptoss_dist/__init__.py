"""gpt-oss on many GPUs."""
