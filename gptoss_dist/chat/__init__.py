"""The terminal chat: what is typed, what is said, and who answers: the model on these ranks, or a server."""
