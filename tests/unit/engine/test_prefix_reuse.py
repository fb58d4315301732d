"""What of a prompt is found in the cache when many conversations take turns: the scheduler and its pages, no model."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from gptoss_dist.engine.page_needs import sliding_pages
from gptoss_dist.engine.pages import PagePool
from gptoss_dist.engine.request import Request, Sampling
from gptoss_dist.engine.scheduler import Scheduler

PAGE, WINDOW, STEP, RUNNING = 16, 128, 2048, 16
PROMPT, ANSWER, QUESTION = 3000, 200, 40


@dataclass
class Chats:
    """A cache of `full_pages` pages, sized as the engine sizes it, and what its requests said."""

    full_pages: int
    lag: int = 1
    asked: int = 0

    def __post_init__(self) -> None:
        self._rng = random.Random(self.full_pages)
        sliding = sliding_pages(WINDOW, PAGE, STEP, RUNNING, self.full_pages)
        pools = PagePool(self.full_pages, PAGE), PagePool(sliding, PAGE)
        self.scheduler = Scheduler(*pools, WINDOW, STEP, RUNNING)

    def tokens(self, count: int) -> list[int]:
        return self._rng.choices(range(200_000), k=count)

    def ask(self, *prompts: list[int], answer: int = ANSWER) -> list[tuple[int, list[int]]]:
        """All at once: how many tokens of each prompt were found in the cache, and what came after it."""
        scheduler, found, said = self.scheduler, dict[str, int](), dict[str, list[int]]()
        for prompt in prompts:
            self.asked += 1
            scheduler.add(Request(str(self.asked), tuple(prompt), Sampling(answer)))
            said[str(self.asked)] = []
        flights = list[int]()
        while scheduler.has_work:
            chunks = scheduler.schedule()
            scheduler.launched(chunks)
            if chunks:
                flights.append(sum(chunk.samples for chunk in chunks))
            while len(flights) > (self.lag if chunks else 0):
                for event in scheduler.resolve(self.tokens(flights.pop(0))):
                    found.setdefault(event.request_id, event.cached)
                    said[event.request_id] += event.tokens
        scheduler.abandon()
        scheduler.check()
        return [(found[name], tokens) for name, tokens in said.items()]


@dataclass
class Share:
    """Of the tokens that were computed before, those that were found."""

    found: int = 0
    known: int = 0
    misses: list[int] = field(default_factory=list)

    def add(self, found: int, known: int) -> None:
        whole = known // PAGE * PAGE
        self.found, self.known = self.found + found, self.known + whole
        if found < whole:
            self.misses.append(whole - found)

    @property
    def percent(self) -> float:
        return 100 * self.found / self.known


def pages_of(conversations: int, rounds: int, more: int) -> int:
    return conversations * -(-(PROMPT + rounds * more) // PAGE)


@pytest.mark.parametrize("conversations", [20, 64])
@pytest.mark.parametrize("keeps_answer", [True, False], ids=["answers stay", "answers are left out"])
def test_conversations_that_take_turns_are_found_as_long_as_full_pages_hold_them(
    conversations: int, keeps_answer: bool
):
    """With the answer in the next prompt it goes on from where a sequence ended, without from where a prompt ended."""
    rounds = 4
    chats = Chats(pages_of(conversations, rounds, ANSWER + QUESTION))
    histories = [chats.tokens(PROMPT) for _ in range(conversations)]
    known, share = [0] * conversations, Share()
    for turn in range(rounds):
        for place, history in enumerate(histories):
            [(found, answer)] = chats.ask(history)
            if turn:
                share.add(found, known[place])
            known[place] = len(history) + (len(answer) - 1 if keeps_answer else 0)
            histories[place] = history + (answer if keeps_answer else []) + chats.tokens(QUESTION)
    assert share.percent == 100, share.misses


@pytest.mark.parametrize("prompt", range(PROMPT, PROMPT + PAGE))
def test_a_window_is_whole_wherever_prompt_and_answer_end(prompt: int):
    """Long prompts of others between: what is not kept on purpose is gone."""
    chats = Chats(1500)
    for answer in (1, 2, 15, 16, 17, 130):
        first = chats.tokens(prompt)
        [(_, said)] = chats.ask(first, answer=answer)
        after = (prompt + len(said) - 1) // PAGE * PAGE
        wanted = [
            (first, (prompt - 1) // PAGE * PAGE),
            ([*first, 1], prompt // PAGE * PAGE),
            ([*first, *said, 2], after),
        ]
        for text, reused in wanted:
            chats.ask(chats.tokens(6200), answer=1)
            assert chats.ask(text, answer=1)[0][0] == reused


def test_where_prompts_part_the_window_stays_from_the_second_on():
    """A beginning that 40 conversations share, each of which asks once, and long prompts of others between them."""
    chats = Chats(1500)
    system, share = chats.tokens(1000), Share()
    for turn in range(40):
        [(found, _)] = chats.ask(system + chats.tokens(2000))
        if turn > 1:
            share.add(found, len(system))
        chats.ask(chats.tokens(PROMPT), answer=1)
        chats.ask(chats.tokens(PROMPT), answer=1)
    assert share.percent == 100, share.misses


def test_what_one_prompt_went_on_from_gives_way_first():
    """Each turn keeps the ends of its prompt and of its answer, and lets go of the end that it went on from."""
    chats = Chats(pages_of(64, 6, ANSWER + QUESTION))
    history, warm = chats.tokens(PROMPT), []
    for _ in range(5):
        [(_, answer)] = chats.ask(history)
        history += answer + chats.tokens(QUESTION)
        warm.append(chats.scheduler.pools[1].warm)
    window = WINDOW // PAGE
    assert 2 * window <= warm[0] <= 2 * window + 1
    assert all(window <= after - before <= window + 1 for before, after in pairwise(warm)), warm
