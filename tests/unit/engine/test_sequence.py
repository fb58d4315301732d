from __future__ import annotations

import pytest

from gptoss_dist.engine.pages import key_of
from gptoss_dist.engine.request import Finish, Request, Sampling
from gptoss_dist.engine.sequence import Sequence

PAGE = 4


def sequence_of(tokens: int, max_tokens: int = 3, stop: tuple[int, ...] = (), first: int = 0) -> Sequence:
    request = Request("a", tuple(range(first, first + tokens)), Sampling(max_tokens, stop_tokens=stop))
    return Sequence(request, 0)


def test_what_a_sequence_knows_of_itself():
    sequence = sequence_of(5)
    assert (sequence.id, sequence.length, sequence.prompt_length, sequence.remaining) == ("a", 5, 5, 5)
    assert sequence.is_prefilling
    sequence.computed = 5
    sequence.tokens.append(9)
    assert (sequence.length, sequence.prompt_length, sequence.remaining) == (6, 5, 1)
    assert sequence.generated == [9]
    assert not sequence.is_prefilling


def test_a_stop_token_ends_a_sequence_and_so_does_the_last_token_allowed():
    sequence = sequence_of(4, max_tokens=2, stop=(3, 50))
    assert sequence.finish is None, "a stop token in the prompt stops nothing"
    sequence.tokens.append(7)
    assert sequence.finish is None
    sequence.tokens.append(8)
    assert sequence.finish is Finish.length
    sequence.tokens[-1] = 50
    assert sequence.finish is Finish.stop


def test_keys_chain_over_prompt_and_generated_tokens():
    sequence = sequence_of(6)
    sequence.tokens += [70, 71, 72]
    first = key_of(b"", [0, 1, 2, 3])
    assert sequence.page_key(1, PAGE) == key_of(first, [4, 5, 70, 71])
    assert sequence.page_key(0, PAGE) == first
    with pytest.raises(IndexError, match="page 2 of a is not full: there are 9 tokens"):
        sequence.page_key(2, PAGE)


def test_two_sequences_are_equal_only_if_they_are_the_same():
    one, other = sequence_of(3), sequence_of(3)
    assert one != other
    assert [other, one].index(one) == 1


def test_pending_tokens_count_and_are_not_known():
    sequence = sequence_of(7, max_tokens=2, stop=(50,))
    sequence.expect()
    assert (sequence.length, sequence.known, sequence.pending, sequence.fed) == (8, 7, 1, True)
    assert (sequence.generated, sequence.finish, sequence.exhausted) == ([], None, False)
    with pytest.raises(IndexError, match="page 1 of a is not full: there are 7 tokens"):
        sequence.page_key(1, PAGE)
    sequence.expect()
    assert sequence.exhausted
    assert sequence.finish is None, "nobody knows the values"
    sequence.learn(50)
    assert (sequence.generated, sequence.finish) == ([50], Finish.stop)
    assert sequence.page_key(1, PAGE) == key_of(key_of(b"", [0, 1, 2, 3]), [4, 5, 6, 50])
    sequence.learn(1)
    with pytest.raises(AssertionError, match="no pending token"):
        sequence.learn(1)
