"""What says that requests belong together. Owns where that stands in a request: a client's own word, else how a conversation begins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from coordinator.cluster.traffic_split import Affinity

if TYPE_CHECKING:
    from starlette.requests import Request

    from coordinator.edge.text.conversation import Conversation

REVISION_HEADER = "X-Baton-Revision"
"""Of an answer: which revision of the model it is by."""
HEADER = "X-Session-Id"
FIELDS = ("conversation", "conversation_id", "session", "session_id", "user")
"""Of a body, the narrowest first: a user has many conversations."""
SEPARATOR = "\x1f"


def affinity_of(
    request: Request, asked: Any, conversation: Conversation | None = None, prompt: object = None
) -> Affinity:
    """A header or a field names the conversation; without one all turns up to the user's first are its name, since they come
    again with every later turn, or the whole of a `prompt` that is no conversation."""
    is_continued = conversation is not None and any(
        turn.role == "assistant" for turn in conversation.turns
    )
    named = _named(request, asked)
    if named is not None:
        return Affinity(named, is_continued)
    if conversation is not None:
        return Affinity(_beginning(conversation), is_continued)
    return Affinity(None if prompt is None else f"prompt:{_spelled(prompt)}")


def _spelled(prompt: object) -> str:
    """On the loop, for every request: of a million token ids `repr` takes ten times as long."""
    return orjson.dumps(prompt).decode()


def _named(request: Request, asked: Any) -> str | None:
    if header := request.headers.get(HEADER):
        return f"session:{header}"
    for field in FIELDS:
        value = getattr(asked, field, None)
        if isinstance(value, dict):
            value = value.get("id")
        if isinstance(value, str) and value:
            return f"{field}:{value}"
    metadata = getattr(asked, "metadata", None)
    user = metadata.get("user_id") if isinstance(metadata, dict) else None
    return f"user:{user}" if isinstance(user, str) and user else None


def _beginning(conversation: Conversation) -> str:
    parts: list[str] = []
    for turn in conversation.turns:
        parts += [turn.role, *turn.texts]
        if turn.role == "user":
            break
    return "turns:" + SEPARATOR.join(parts)
