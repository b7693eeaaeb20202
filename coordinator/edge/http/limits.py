"""How much one client may ask for. Owns the numbers of the edge; who enforces them names the field.

Each bound keeps one request from costing the others more than they would notice: the reasons stand
in the limits table of the security notes. Bounds that pydantic checks are module constants, so that
`/openapi.json` tells them; bounds an operator may move are in `EdgeLimits`.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_MESSAGES = 1024
MAX_TOOLS = 128
MAX_DOCUMENTS = 128
MAX_TOOLS_BYTES = 64 * 1024
MAX_TOOL_NAME_CHARACTERS = 128
MAX_STOP_STRINGS = 16
MAX_STOP_BYTES = 256
MAX_STOP_TOKEN_IDS = 1024
MAX_LOGIT_BIAS = 1024
MAX_LOGPROBS = 20
MAX_HINTS = 64
MAX_PROMPT_LOGPROBS = 256 * 1024
MAX_CHOICES = 8
MAX_PROMPTS = 128
MAX_EMBEDDED = 2048
MAX_EMBEDDED_BYTES = 16 * 1024 * 1024
MAX_JSON_DEPTH = 32
MAX_CACHE_SALT_CHARACTERS = 256
MAX_REQUEST_ID_CHARACTERS = 128
MOST_PRIORITY = 2**31 - 1
MAX_METADATA = 16
MAX_METADATA_KEY_CHARACTERS = 64
MAX_METADATA_CHARACTERS = 512
MAX_LABEL_CHARACTERS = 512
MAX_TOLD_BYTES = 128 * 1024


@dataclass(frozen=True, slots=True)
class EdgeLimits:
    """Bounds an operator may move.

    `default_max_tokens` is what a chat gets that names no `max_tokens`, never more than the context
    has left. It is not the whole context, as some servers choose, because admission reserves the
    blocks of every token that may come: a client that says nothing would take a whole context's
    worth. `completions_max_tokens` is the same for /v1/completions, where the field's default is 16.
    """

    max_body_bytes: int = 4 * 1024 * 1024
    max_bodies_bytes: int = 256 * 1024 * 1024
    default_max_tokens: int = 1024
    completions_max_tokens: int = 16
    request_deadline_s: float = 600.0
    body_deadline_s: float = 30.0
    stalled_client_s: float = 30.0
    template_deadline_s: float = 1.0
    inline_text_bytes: int = 8 * 1024

    @property
    def max_template_characters(self) -> int:
        """A template may repeat what it was given, within reason."""
        return 4 * self.max_body_bytes
