from __future__ import annotations

import pytest

from gptoss_dist.harmony import vocab


@pytest.fixture(scope="session")
def encoding():
    return vocab.load_encoding()


@pytest.fixture(scope="session")
def vocabulary_bytes():
    """The real vocabulary, found or fetched once for the whole run."""
    vocab.load_encoding()
    return vocab.find_vocabulary().path.read_bytes()
