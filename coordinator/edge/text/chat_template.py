"""A conversation to one prompt text. Owns which template is taken; templates come from operators only.

Templates run in `template_sandbox.py`, where every operation is paid for before it is done, so neither time nor memory of a
rendering is without end. They never come from a request.
A guarded template has a second copy that marks what it writes itself (`control_tokens.py`).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError, meta, nodes

from coordinator.edge.text.control_tokens import mark_template
from coordinator.edge.text.template_meter import Meter, too_large
from coordinator.edge.text.template_sandbox import METER, TemplateSandbox
from protocol.errors import ConfigError, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from jinja2 import Template

    from coordinator.edge.http.limits import EdgeLimits
    from coordinator.edge.text.control_tokens import ControlTokens
    from protocol.clock import Clock

SPECIAL_TOKENS = frozenset(
    {
        *("bos_token", "eos_token", "unk_token", "sep_token"),
        *("pad_token", "cls_token", "mask_token"),
    }
)
SETTINGS, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
GIVEN = frozenset({"messages", "tools", "documents", "add_generation_prompt", "chat_template"})
SHOWN_CHARACTERS = 500


TEMPLATE_FAULTS = (
    *(TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError),
    *(TypeError, ValueError),
)
UNCOMPILED = (*TEMPLATE_FAULTS, SyntaxError, MemoryError)
"""What Jinja, and Python for what Jinja made, say of a template that cannot be: numbers of too many digits, too deep
brackets and loops."""


class UncompiledTemplate(ConfigError):
    """A text that is no template; `name` is what it is called."""

    def __init__(self, name: str, told: str) -> None:
        super().__init__(f"chat template {name!r} does not compile: {told}")
        self.name = name


class ChatTemplate:
    """A compiled template with the model's special tokens."""

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        self._environment = TemplateSandbox()
        self._sources = dict(sources)
        self._special_tokens = dict(special_tokens)
        self._copies = {False: (self._compile(None), self._special_tokens)}

    def _compile(self, tokens: ControlTokens | None) -> dict[str, Template]:
        environment, compiled = self._environment, {}
        for name, source in self._sources.items():
            try:
                tree = environment.parse(source)
                if tokens is not None:
                    mark_template(tree, tokens)
                compiled[name] = environment.compile_tree(tree)
            except UNCOMPILED as error:
                raise UncompiledTemplate(name, _shown(error)) from error
        return compiled

    def guard(self, tokens: ControlTokens) -> None:
        """Make the copy that marks control tokens; `render` takes it when it is asked for marks."""
        special = {name: tokens.marked(text) for name, text in self._special_tokens.items()}
        self._copies[True] = (self._compile(tokens), special)

    def variables(self) -> frozenset[str]:
        """What a request may set: names that a template reads and nobody else gives a value."""
        trees = [self._environment.parse(source) for source in self._sources.values()]
        read = {name for tree in trees for name in _read_by(tree)}
        given = GIVEN | SPECIAL_TOKENS | self._special_tokens.keys()
        return frozenset(read - given - set(self._environment.globals))

    def told(self) -> dict[str, Any]:
        """The special tokens, and the template: one text, or named ones, or None."""
        sources = [{"name": name, "template": text} for name, text in self._sources.items()]
        is_one = list(self._sources) == ["default"]
        template = self._sources["default"] if is_one else sources or None
        return self._special_tokens | {"chat_template": template}

    def mentions(self, text: str) -> bool:
        """Whether a template has `text` in it."""
        return any(text in source for source in self._sources.values())

    @classmethod
    def from_directory(cls, directory: Path, override: Path | None = None) -> ChatTemplate:
        """The operator's file, else the model's own, else none: then every chat is refused."""
        config = read_tokenizer_config(directory / SETTINGS)
        own = directory / TEMPLATE
        file = override or (own if own.exists() else None)
        if file is None:
            return cls(_sources_in(config.get("chat_template")), _special_tokens(config))
        try:
            sources = {"default": file.read_text(encoding="utf-8")}
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the chat template {file}: {error}") from error
        return cls(sources, _special_tokens(config))

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> ChatTemplate:
        """The same of files that are not written yet."""
        config = json.loads(files.get(SETTINGS, b"{}"))
        if TEMPLATE in files:
            return cls({"default": files[TEMPLATE].decode()}, _special_tokens(config))
        return cls(_sources_in(config.get("chat_template")), _special_tokens(config))

    def render(
        self,
        context: Mapping[str, Any],
        *,
        clock: Clock,
        limits: EdgeLimits,
        marks: bool = False,
    ) -> str:
        """Prompt text. Raises InvalidRequest when the template refuses, fails or does not end."""
        templates, special_tokens = self._copies[marks]
        template = _choose(templates, tools=context.get("tools"))
        meter = Meter(
            clock, clock.now_s() + limits.template_deadline_s, limits.max_template_characters
        )
        pieces, length = [], 0
        try:
            for piece in template.generate({**special_tokens, **context, METER: meter}):
                pieces.append(piece)
                length += len(piece)
                if length > limits.max_template_characters:
                    raise too_large()
                meter.tick()
        except (*TEMPLATE_FAULTS, MemoryError) as error:
            message = f"the chat template cannot render these messages: {_shown(error)}"
            raise InvalidRequest(message, "messages") from error
        return "".join(pieces)


def _shown(error: BaseException) -> str:
    text = " ".join(str(error)[: 2 * SHOWN_CHARACTERS].split())
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"


def _read_by(tree: nodes.Template) -> set[str]:
    """Names that come from outside: what a template sets itself only if it asks whether it is defined."""
    names = list(tree.find_all(nodes.Name))
    own = {name.name for name in names if name.ctx != "load"}
    asked = {
        test.node.name
        for test in tree.find_all(nodes.Test)
        if test.name in ("defined", "undefined") and isinstance(test.node, nodes.Name)
    }
    return meta.find_undeclared_variables(tree) - (own - asked)


def _choose(templates: Mapping[str, Template], *, tools: object) -> Template:
    if not templates:
        message = "this model has no chat template: use /v1/completions, or serve it with one"
        raise InvalidRequest(message, "messages")
    if tools and "tool_use" in templates:
        return templates["tool_use"]
    return templates.get("default") or next(iter(templates.values()))


def read_tokenizer_config(path: Path) -> dict[str, Any]:
    """What is in the file; nothing where there is none. Raises ConfigError."""
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
    """Names to texts; a token is a string or an object with `content`. Models have some of their own, such as `image_token`."""
    named = {name: token for name, token in config.items() if name.endswith("_token")}
    extra = config.get("extra_special_tokens")
    found: dict[str, str] = {}
    for name, token in (named | (extra if isinstance(extra, dict) else {})).items():
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            found[name] = text
    return found
