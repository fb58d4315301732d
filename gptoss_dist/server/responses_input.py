"""`input` of a request as a list of items, each in the one form that is stored, listed and rendered.

message                  user, system or developer: input_text parts; assistant: output_text parts, perhaps a phase
reasoning                reasoning_text parts
function_call            call_id, name, arguments
function_call_output     call_id, output: a text, or input_text parts
item_reference           becomes the item of an earlier response that has this id
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any

from gptoss_dist.server.api_error import ApiError, unsupported

Item = dict[str, Any]
Find = Callable[[str], Item | None]

_TEXTS = ("input_text", "output_text", "text")
_ROLES = ("user", "assistant", "system", "developer")
_PHASES = ("commentary", "final_answer")
_STATUSES = ("completed", "incomplete")
_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc", "function_call_output": "fco"}
_LONGEST_ID = 256


def new_id(kind: str) -> str:
    """An id for an item of this type."""
    return f"{_PREFIXES[kind]}_{uuid.uuid4().hex}"


def items_of(given: str | list[Any] | None, find: Find) -> list[Item]:
    """The items, none of None; `find` gives the stored item of an id.

    Raises ApiError: 400, or 404 for a reference to nothing.
    """
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    return [_item(f"input[{index}]", one, find) for index, one in enumerate(given or ())]


def _item(where: str, one: Any, find: Find) -> Item:
    if not isinstance(one, Mapping):
        raise _wrong(where, f"{type(one).__name__}; an item is needed")
    kind = one.get("type")
    if kind is None:
        kind = "message" if "role" in one else "item_reference" if set(one) <= {"id", "type"} else None
    match kind:
        case "message":
            return _message(where, one)
        case "reasoning":
            return _reasoning(where, one, find)
        case "function_call":
            return _function_call(where, one)
        case "function_call_output":
            return _function_output(where, one)
        case "item_reference":
            return _referred(where, one, find)
    known = ", ".join((*_PREFIXES, "item_reference"))
    raise unsupported(_param(f"{where}.type"), f"{where}.type is {kind!r}; this server reads: {known}.")


def _message(where: str, one: Mapping[str, Any]) -> Item:
    role = one.get("role")
    if role not in _ROLES:
        raise _wrong(f"{where}.role", f"{role!r}; use one of: {', '.join(_ROLES)}")
    texts = _texts(f"{where}.content", one.get("content"))
    item = _head(where, one, "message")
    if role != "assistant":
        return {**item, "role": role, "content": [{"type": "input_text", "text": text} for text in texts]}
    parts = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []} for text in texts]
    phase = {"phase": one["phase"]} if one.get("phase") in _PHASES else {}
    return {**item, "role": role, "content": parts, **phase}


def _reasoning(where: str, one: Mapping[str, Any], find: Find) -> Item:
    content = one.get("content")
    texts = [] if content is None else _texts(f"{where}.content", content, ("reasoning_text",))
    if not texts and isinstance(one.get("id"), str) and (known := find(one["id"])) and known["type"] == "reasoning":
        return known
    summary = [
        {"type": "summary_text", "text": text}
        for text in _texts(f"{where}.summary", one.get("summary") or [], ("summary_text",))
    ]
    parts = [{"type": "reasoning_text", "text": text} for text in texts]
    return {**_head(where, one, "reasoning"), "summary": summary, "content": parts}


def _function_call(where: str, one: Mapping[str, Any]) -> Item:
    fields = {name: _text(f"{where}.{name}", one.get(name)) for name in ("call_id", "name", "arguments")}
    return {**_head(where, one, "function_call"), **fields}


def _function_output(where: str, one: Mapping[str, Any]) -> Item:
    call_id, output = _text(f"{where}.call_id", one.get("call_id")), one.get("output")
    if not isinstance(output, str):
        output = [{"type": "input_text", "text": text} for text in _texts(f"{where}.output", output)]
    else:
        _text(f"{where}.output", output)
    return {**_head(where, one, "function_call_output"), "call_id": call_id, "output": output}


def _referred(where: str, one: Mapping[str, Any], find: Find) -> Item:
    name = _text(f"{where}.id", one.get("id"))
    found = find(name)
    if found is None:
        raise ApiError(404, f"{where}: no stored item has the id {name!r}.", param=_param(f"{where}.id"))
    return found


def _head(where: str, one: Mapping[str, Any], kind: str) -> Item:
    """What all items have: their id, type and status."""
    given = one.get("id")
    if given is not None and not (isinstance(given, str) and given.isprintable() and len(given) <= _LONGEST_ID):
        raise _wrong(f"{where}.id", f"a printable text of up to {_LONGEST_ID} characters is needed")
    status = one.get("status") if one.get("status") in _STATUSES else "completed"
    return {"id": given or new_id(kind), "type": kind, "status": status}


def _texts(where: str, content: Any, kinds: tuple[str, ...] = _TEXTS) -> list[str]:
    """The texts of a content: one string, or parts of these kinds; a refusal's text is text too."""
    if isinstance(content, str):
        return [_text(where, content)]
    if not isinstance(content, list):
        raise _wrong(where, f"{type(content).__name__}; send a text or a list of parts")
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        place = f"{where}[{number}]"
        if kind == "refusal" and kinds is _TEXTS:
            texts.append(_text(f"{place}.refusal", part.get("refusal")))
        elif kind in kinds:
            texts.append(_text(f"{place}.text", part.get("text")))
        else:
            message = f"{place} is {kind!r}, and gpt-oss reads text only. Send {kinds[0]} parts."
            raise unsupported(_param(f"{place}.type"), message)
    return texts


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(where, f"{type(value).__name__}; a text is needed")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _wrong(where, f"character {error.start} is half of a surrogate pair; send the whole one") from None
    return value


def _wrong(where: str, what: str) -> ApiError:
    return ApiError(400, f"{where}: {what}.", param=_param(where), code="invalid_value")


def _param(where: str) -> str:
    """`input[2].content` as OpenAI writes it: `input.[2].content`."""
    return where.replace("[", ".[")
