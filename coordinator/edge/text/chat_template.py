"""A conversation to one prompt text. Owns the Jinja environment; templates come from operators only.

Templates run in Jinja's immutable sandbox, with the helpers that templates on the Hugging Face hub
expect. They never come from a request. Output and time are capped while it is being made.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from protocol.clock import wall_time_s
from protocol.errors import ConfigError, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from jinja2 import Template
    from jinja2.parser import Parser

    from coordinator.edge.http.limits import EdgeLimits
    from protocol.clock import Clock

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
ALLOWED_KWARGS = frozenset({"enable_thinking", "thinking", "reasoning_effort", "date_string"})


class GenerationTag(Extension):
    """`{% generation %}` marks assistant text for training; serving shows its body as it is."""

    tags = {"generation"}  # noqa: RUF012 - the name and form that jinja2 reads

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The body alone."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.fromtimestamp(wall_time_s(), tz=UTC).astimezone().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    """JSON as it stands: Jinja's own filter escapes for HTML, which a prompt must not be."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def make_environment() -> ImmutableSandboxedEnvironment:
    """The environment that transformers gives a chat template."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class ChatTemplate:
    """A compiled template with the model's special tokens."""

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        environment = make_environment()
        self._special_tokens = dict(special_tokens)
        self._templates: dict[str, Template] = {}
        for name, source in sources.items():
            try:
                self._templates[name] = environment.from_string(source)
            except TemplateError as error:
                raise ConfigError(f"chat template {name!r} does not compile: {error}") from error

    @classmethod
    def from_directory(cls, directory: Path, override: Path | None = None) -> ChatTemplate:
        """The operator's file, else the model's own, else none: then every chat is refused."""
        config = _read_tokenizer_config(directory / "tokenizer_config.json")
        own = directory / "chat_template.jinja"
        file = override or (own if own.exists() else None)
        if file is None:
            return cls(_sources_in(config.get("chat_template")), _special_tokens(config))
        try:
            sources = {"default": file.read_text(encoding="utf-8")}
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the chat template {file}: {error}") from error
        return cls(sources, _special_tokens(config))

    def render(self, context: Mapping[str, Any], *, clock: Clock, limits: EdgeLimits) -> str:
        """Prompt text. Raises InvalidRequest when the template refuses, fails or does not end."""
        template = self._choose(tools=context.get("tools"))
        deadline_s = clock.now_s() + limits.template_deadline_s
        pieces, length = [], 0
        try:
            for piece in template.generate({**self._special_tokens, **context}):
                pieces.append(piece)
                length += len(piece)
                if length > limits.max_template_characters or clock.now_s() > deadline_s:
                    raise InvalidRequest("the chat template's output is too large", "messages")
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            message = f"the chat template cannot render these messages: {error}"
            raise InvalidRequest(message, "messages") from error
        return "".join(pieces)

    def _choose(self, *, tools: object) -> Template:
        if not self._templates:
            message = "this model has no chat template: use /v1/completions, or serve it with one"
            raise InvalidRequest(message, "messages")
        if tools and "tool_use" in self._templates:
            return self._templates["tool_use"]
        return self._templates.get("default") or next(iter(self._templates.values()))


def continue_from(text: str, final_content: str) -> str:
    """`text` cut after the last message's own words, so that the model goes on with them."""
    words = final_content.strip()
    start = text.rfind(words)
    if not words or start < 0:
        message = "continue_final_message needs a last message whose text the template keeps"
        raise InvalidRequest(message, "continue_final_message")
    spaced = final_content.lstrip()
    kept = spaced if text.startswith(spaced, start) else words
    return text[: start + len(kept)]


def _read_tokenizer_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path} does not hold an object")
    return config


def _sources_in(field: object) -> dict[str, str]:
    """`chat_template` of tokenizer_config.json: one text, or a list of named ones."""
    if isinstance(field, str):
        return {"default": field}
    if isinstance(field, list):
        return {str(entry["name"]): str(entry["template"]) for entry in field}
    return {}


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Names to texts; a token is a string or an object with `content`."""
    found: dict[str, str] = {}
    for name in SPECIAL_TOKENS:
        token = config.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            found[name] = text
    return found
