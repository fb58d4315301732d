"""The checker of streams finds what is wrong with one."""

from __future__ import annotations

import copy

import httpx
import pytest
from response_streams import check_response_stream, response_events

TOOL = {"type": "function", "name": "get_weather", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture(scope="module")
def streams(server):
    found = []
    for question in ("weather", "hi", "preamble"):
        body = {"input": question, "stream": True, "tools": [TOOL], "include": ["message.output_text.logprobs"]}
        found.append(response_events(httpx.post(f"{server.url}/v1/responses", json=body, timeout=30).text))
    return found


def fails(events: list[dict]) -> bool:
    for number, event in enumerate(events):
        event["sequence_number"] = number
    try:
        check_response_stream(events)
    except (AssertionError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return True
    return False


def test_a_stream_as_it_is_passes(streams):
    assert not any(fails(copy.deepcopy(events)) for events in streams)


def test_a_missing_or_doubled_event_is_found(streams):
    for events in streams:
        for place in range(len(events)):
            missing = copy.deepcopy(events)
            del missing[place]
            assert fails(missing), events[place]
            doubled = copy.deepcopy(events)
            doubled.insert(place, copy.deepcopy(events[place]))
            assert fails(doubled), events[place]


def test_two_events_in_the_wrong_order_are_found(streams):
    for events in streams:
        for place in range(len(events) - 1):
            swapped = copy.deepcopy(events)
            swapped[place], swapped[place + 1] = swapped[place + 1], swapped[place]
            first, second = events[place], events[place + 1]
            if {**first, "sequence_number": 0} != {**second, "sequence_number": 0}:
                assert fails(swapped), (first, second)


def test_a_changed_field_is_found(streams):
    for events in streams:
        for place, event in enumerate(events):
            for name, value in event.items():
                if name == "sequence_number":
                    continue
                changed = copy.deepcopy(events)
                changed[place][name] = value + 1 if isinstance(value, int) else [1] if isinstance(value, list) else "?"
                if (event["type"], name) == ("response.function_call_arguments.done", "name"):
                    continue  # no client reads it: the item has it
                assert fails(changed), (event["type"], name)


def test_numbers_that_do_not_follow_each_other_are_found(streams):
    events = copy.deepcopy(streams[0])
    events[5]["sequence_number"] += 1
    with pytest.raises(AssertionError):
        check_response_stream(events)
