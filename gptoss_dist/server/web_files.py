"""The files of the web page, read once, and the headers they are sent with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).parent / "web"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
PAGE = "page.html"
WEB_PATHS = ("/stats", *sorted(f"/web/{file.name}" for file in _FOLDER.iterdir() if file.suffix in _TYPES))
"""What the page at / asks for; it holds nothing secret."""

_POLICY = {
    "default-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "object-src": "'none'",
    "require-trusted-types-for": "'script'",  # the browser itself refuses text as markup
}
HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # kept by the browser, and asked for by its ETag each time
}


@dataclass(frozen=True)
class WebFile:
    """A file as it is sent; `etag` differs where `content` does."""

    content: bytes
    media_type: str
    etag: str

    def is_known(self, if_none_match: str | None) -> bool:
        """Whether the browser has this very content, by its If-None-Match header (RFC 9110, section 13.1.2)."""
        given = [one.strip().removeprefix("W/") for one in (if_none_match or "").split(",")]
        return self.etag in given or given == ["*"]


def load_files() -> dict[str, WebFile]:
    """Every file of the page by its name."""
    return {file.name: _load(file) for file in sorted(_FOLDER.iterdir()) if file.suffix in _TYPES}


def _load(file: Path) -> WebFile:
    content = file.read_bytes()
    return WebFile(content, _TYPES[file.suffix], f'"{hashlib.blake2b(content, digest_size=12).hexdigest()}"')
