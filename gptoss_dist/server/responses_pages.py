"""Lists of items, a page at a time, as OpenAI's clients walk through them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from gptoss_dist.server.api_error import ApiError


def page_of(encoded: Sequence[bytes], limit: int, newest_first: bool, after: str | None) -> dict[str, Any]:
    """At most `limit` items, those after the one with the id `after`. Raises ApiError (400) if there is none such.

    The ids of an empty page are empty texts: OpenAI's type has no null there.
    """
    items = [json.loads(item) for item in encoded]
    if newest_first:
        items.reverse()
    if after is not None:
        places = [place for place, item in enumerate(items) if item["id"] == after]
        if not places:
            raise ApiError(400, f"after: no input item of this response has the id {after!r}.", param="after")
        items = items[places[0] + 1 :]
    page = items[:limit]
    first, last = (page[0]["id"], page[-1]["id"]) if page else ("", "")
    return {"object": "list", "data": page, "first_id": first, "last_id": last, "has_more": len(items) > limit}
