"""Which APIs are served. Owns the one list that names them: a new API is a folder here and a line below."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.edge.apis.anthropic.api import AnthropicApi
from coordinator.edge.apis.ollama.api import OllamaApi
from coordinator.edge.apis.openai.api import OpenAiApi

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.edge.answers.edge import Api, Edge

    ApiFactory = Callable[[Edge], Api]

APIS: tuple[ApiFactory, ...] = (AnthropicApi, OllamaApi, OpenAiApi)
"""Where two have the same path the first one looks whether a request is for it."""
