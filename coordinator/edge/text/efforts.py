"""How much to think, in the words that APIs have for it. Owns which there are, and what a template is told."""

from __future__ import annotations

from coordinator.edge.http.field_errors import INVALID
from protocol.errors import InvalidRequest

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
WITHOUT_THOUGHTS = ("none", "minimal")
_SHOWN_CHARACTERS = 64


def effort_hints(effort: str | None, path: str) -> dict[str, bool | str]:
    """Variables for templates that read them; raises InvalidRequest, naming `path`, for a word that nobody knows: it would
    be written into a prompt."""
    if effort is None:
        return {}
    if effort not in EFFORTS:
        told = f"{path} must be one of {', '.join(EFFORTS)}, not {effort[:_SHOWN_CHARACTERS]!r}"
        raise InvalidRequest(told, path, INVALID)
    return {"enable_thinking": effort not in WITHOUT_THOUGHTS, "reasoning_effort": effort}
