"""Engines: token ids and sampling parameters in, token ids out. No text, no harmony here."""
