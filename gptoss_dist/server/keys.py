"""API keys: from the environment, compared in constant time, never shown."""

from __future__ import annotations

import hmac
import ipaddress
import os
from collections.abc import Mapping, Sequence

from gptoss_dist.errors import ConfigError
from gptoss_dist.server.web_files import WEB_PATHS

VARIABLE = "GPTOSS_API_KEYS"
OPEN_PATHS = ("/", "/health", "/ready", "/metrics", "/docs", "/openapi.json", *WEB_PATHS)
"""Answered without a key: they hold nothing secret, and a browser cannot send one with a page that it loads."""
_DOCS_FILES = "/static-offline-docs/"
"""Below it fastapi-offline has the scripts of /docs."""


class ApiKeys:
    """The keys that a server accepts; none: everybody may ask."""

    def __init__(self, keys: Sequence[str]) -> None:
        """`keys` in clear text."""
        self._keys = tuple(key.encode() for key in keys)

    @property
    def required(self) -> bool:
        """Whether a request needs a key."""
        return bool(self._keys)

    def accepts(self, authorization: str | None) -> bool:
        """Whether the header is `Bearer KEY` with one of the keys; takes the same time for each."""
        if not self._keys:
            return True
        scheme, _, given = (authorization or "").partition(" ")
        offered = given.strip().encode("utf-8", "surrogateescape")
        matches = [hmac.compare_digest(offered, key) for key in self._keys]
        return any(matches) and scheme.lower() == "bearer"


def needs_key(path: str) -> bool:
    """Whether a path is answered with a key only, where there are keys."""
    return path not in OPEN_PATHS and not path.startswith(_DOCS_FILES)


def keys_for(host: str, allow_anonymous: bool, environ: Mapping[str, str] = os.environ) -> ApiKeys:
    """The keys of GPTOSS_API_KEYS (commas between).

    Raises ConfigError if others could reach a server without any, and for a key that no client can send.
    """
    keys = [key for part in environ.get(VARIABLE, "").split(",") if (key := part.strip())]
    for place, key in enumerate(keys):
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ConfigError(
                f"{VARIABLE}: key {place + 1} of {len(keys)} cannot be sent in a header: use printable ASCII without "
                "spaces."
            )
    if not keys and not allow_anonymous and not is_loopback(host):
        raise ConfigError(
            f"job.host={host} can be reached from other machines, and there is no API key. Set {VARIABLE}=KEY[,KEY…] "
            "in the environment, or say job.allow_anonymous=true."
        )
    return ApiKeys(keys)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
