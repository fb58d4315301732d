from __future__ import annotations

from gptoss_dist.chat.conversation import Conversation, Piece, Turn
from gptoss_dist.harmony.conversation import PromptOptions, render


def test_a_turn_becomes_the_message_of_its_pieces():
    turn = Turn()
    for piece in (
        Piece("analysis", "Th"),
        Piece("analysis", "ink."),
        Piece("call", "", "clock", "call_1"),
        Piece("call", '{"zone"', None, "call_1"),
        Piece("call", ': "UTC"}', None, "call_1"),
        Piece("call", "{}", "date", "call_2"),
    ):
        turn.take(piece)
    assert turn.message() == {
        "role": "assistant",
        "content": None,
        "reasoning_content": "Think.",
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": '{"zone": "UTC"}'}},
            {"id": "call_2", "type": "function", "function": {"name": "date", "arguments": "{}"}},
        ],
    }


def test_the_final_text_is_the_content_and_a_preamble_only_without_one():
    turn = Turn()
    turn.take(Piece("commentary", "I will look."))
    assert turn.message()["content"] == "I will look."
    turn.take(Piece("final", "Done."))
    assert turn.message()["content"] == "Done."


def test_a_whole_exchange_renders_with_its_tool_results():
    conversation = Conversation(system="Be brief.", date="2026-01-01")
    conversation.say("What time is it?")
    turn = Turn()
    turn.take(Piece("call", "{}", "clock", "call_1"))
    conversation.messages.append(turn.message())
    conversation.add_result(turn.calls["call_1"], "noon")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What time is it?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "noon"},
    ]
    assert conversation.tokens() == render(messages, PromptOptions(current_date="2026-01-01"))


def test_a_call_that_the_model_got_wrong_does_not_end_the_conversation():
    conversation = Conversation()
    conversation.say("What time is it?")
    turn = Turn()
    turn.take(Piece("call", "half past {", "clöck", "call_1"))
    conversation.messages.append(turn.message())
    conversation.add_result({"id": "call_1"}, "error: no JSON")
    (call,) = conversation.prompt()[1]["tool_calls"]
    assert call["function"] == {"name": "cl_ck", "arguments": '"half past {"'}
    assert conversation.messages[1]["tool_calls"][0]["function"]["arguments"] == "half past {"
    assert conversation.tokens()


def test_calls_without_a_result_are_taken_back_and_nothing_else():
    conversation = Conversation()
    conversation.say("What time is it, and which day?")
    turn = Turn()
    for piece in (Piece("call", "{}", "clock", "call_1"), Piece("call", '{"d', "date", "call_2")):
        turn.take(piece)
    conversation.messages.append(turn.message())
    conversation.add_result(turn.calls["call_1"], "noon")
    conversation.drop_open_calls()
    assert [call["id"] for call in conversation.messages[1]["tool_calls"]] == ["call_1"]
    assert conversation.messages[2:] == [{"role": "tool", "tool_call_id": "call_1", "content": "noon"}]
    conversation.drop_open_calls()
    assert len(conversation.messages) == 3
    turn.take(Piece("commentary", "I will look."))
    conversation.messages.append(turn.message())  # the same ids again, as some servers give them
    conversation.drop_open_calls()
    assert conversation.messages[3:] == [{"role": "assistant", "content": "I will look."}]
    conversation.say("And now?")
    assert conversation.tokens()


def test_an_answer_that_was_nothing_but_open_calls_goes_and_an_open_question_can():
    conversation = Conversation()
    conversation.say("What time is it?")
    turn = Turn()
    turn.take(Piece("call", '{"z', "clock", "call_1"))
    conversation.messages.append(turn.message())
    conversation.drop_open_question()
    conversation.drop_open_calls()
    assert conversation.messages == [{"role": "user", "content": "What time is it?"}]
    conversation.drop_open_question()
    conversation.drop_open_question()
    assert conversation.messages == []


def test_an_answer_that_said_nothing_can_be_followed_by_a_question():
    conversation = Conversation()
    for thought in ((), (Piece("analysis", ""),), (Piece("analysis", "Hm."),)):
        conversation.say("Well?")
        turn = Turn()
        for piece in thought:
            turn.take(piece)
        conversation.messages.append(turn.message())
    conversation.say("And now?")
    assert conversation.tokens()
