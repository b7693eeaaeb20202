"""`/ui`: the live page. Owns the page's headers; the page itself is one file that asks `/cluster` and `/v1`.

The page is open and holds nothing; what it shows comes from endpoints that ask for a key when the
server has one. Its policy lets it talk to its own server only, and run only the script it came with.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import Response

PAGE = Path(__file__).with_name("ui.html")


def content_security_policy(page: str) -> str:
    """Allow the page's own <script> and <style> by their hashes, and nothing else that runs."""
    directives = {
        "default-src": "'none'",
        "script-src": _hashes(page, "script"),
        "style-src": _hashes(page, "style"),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in directives.items())


def _hashes(page: str, element: str) -> str:
    contents = re.findall(f"<{element}>(.*?)</{element}>", page, re.DOTALL)
    digests = [hashlib.sha256(content.encode()).digest() for content in contents]
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


class UiRoutes:
    """One page."""

    def __init__(self) -> None:
        page = PAGE.read_text(encoding="utf-8")
        self._body = page.encode()
        self._headers = {
            "content-security-policy": content_security_policy(page),
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cache-control": "no-cache",
        }

    def router(self) -> APIRouter:
        """Its route."""
        router = APIRouter()
        router.add_api_route(
            "/ui", self.page, methods=["GET"], response_model=None, include_in_schema=False
        )
        return router

    async def page(self) -> Response:
        """The file as it is."""
        return Response(self._body, headers=self._headers, media_type="text/html")
