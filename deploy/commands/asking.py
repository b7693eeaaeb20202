"""Asking a running server. Owns what people are told when there is none, and that a refusal comes in the server's words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx

from deploy.commands.chat import ServerError, explain

if TYPE_CHECKING:
    from collections.abc import Mapping


def reply_of(
    client: httpx.Client, method: str, path: str, body: Mapping[str, Any] | None = None
) -> httpx.Response:
    """Whatever it answers; ServerError when it does not."""
    try:
        return client.request(method, path, json=body)
    except httpx.RequestError as error:
        where = str(client.base_url).rstrip("/")
        raise ServerError(
            f"no server at {where} ({type(error).__name__}); start one with: baton serve, "
            "or name another with --url"
        ) from error


def told_by(
    client: httpx.Client, method: str, path: str, body: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Its object of JSON; ServerError for any status but 200, too."""
    response = reply_of(client, method, path, body)
    if response.status_code != 200:
        raise ServerError(explain(response))
    return object_in(response)


def object_in(response: httpx.Response) -> dict[str, Any]:
    """What it says; ServerError where that is no object of JSON: another server listens there."""
    try:
        told = response.json()
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise ServerError(
            f"{response.url} is answered, but not by a Baton server; name another with --url"
        )
    return told
