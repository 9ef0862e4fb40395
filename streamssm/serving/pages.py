"""The page at ``/`` and its files: read once, served from memory, under a strict policy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "page"

_TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webmanifest": "application/manifest+json",
}

#: nothing from elsewhere, nothing inline, nobody may frame it
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "media-src 'self' blob:; worker-src 'self' blob:; manifest-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class Page:
    """A file and its media type."""

    body: bytes
    media_type: str


def read_pages() -> dict[str, Page]:
    """The files of the page by name; none if they were not installed."""
    if not FOLDER.is_dir():
        return {}
    return {
        path.name: Page(path.read_bytes(), _TYPES[path.suffix])
        for path in sorted(FOLDER.iterdir())
        if path.suffix in _TYPES
    }
