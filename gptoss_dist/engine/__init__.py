"""Engines: token ids and sampling parameters in, token ids out, all ranks in step. No text, no harmony here."""
