"""Lists of items, a page at a time, as OpenAI's clients walk through them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gptoss_dist.server.api_error import ApiError
from gptoss_dist.server.store import StoredItem


def page_of(items: Sequence[StoredItem], limit: int, newest_first: bool, after: str | None) -> dict[str, Any]:
    """At most `limit` items, those after the one with the id `after`. Raises ApiError (400) if there is none such.

    The ids of an empty page are empty texts: OpenAI's type has no null there.
    """
    rest = list(reversed(items)) if newest_first else list(items)
    if after is not None:
        places = [place for place, item in enumerate(rest) if item.id == after]
        if not places:
            raise ApiError(400, f"after: no input item of this response has the id {after!r}.", param="after")
        rest = rest[places[0] + 1 :]
    page = rest[:limit]
    first, last = (page[0].id, page[-1].id) if page else ("", "")
    data = [item.decoded for item in page]
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": len(rest) > limit}
