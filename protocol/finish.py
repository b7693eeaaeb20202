"""Why the tokens of an answer ended. Owns the reasons; an API has its own words for them.

Whoever decides compares members, never words; on the wire a member is its word, and any other breaks the protocol.
"""

from __future__ import annotations

import enum


class FinishReason(enum.StrEnum):
    """A worker says STOP, LENGTH or ERROR. The edge alone says TOOL_CALLS, of a STOP after calls, and ABORT, of a client that left."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    ABORT = "abort"
    ERROR = "error"
