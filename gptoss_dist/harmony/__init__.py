"""Conversations: the vocabulary, messages to tokens, tokens to an answer; all through openai-harmony."""
