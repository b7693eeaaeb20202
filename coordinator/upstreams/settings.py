"""A router's configuration file. Owns what of LiteLLM's `config.yaml` is read, and refuses the rest by name.

    model_list:           model_name (the group), litellm_params (where, how much), model_info.id
    router_settings:      routing_strategy, num_retries, timeouts, cooldowns, fallbacks
    litellm_settings:     what of these LiteLLM takes there, too

A value `os.environ/NAME` is that variable's. `baton/NAME` is a model of our own pools, `openai/`, `hosted_vllm/` (what vLLM's
server knows besides, as Baton does) and `anthropic/` are servers that speak those dialects. Values of keys are in no message.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

from coordinator.upstreams.documents import read_document
from coordinator.upstreams.sections import Section
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

MAX_FILE_BYTES = 1 << 20
MAX_DEPLOYMENTS = 1000
ANY_GROUP = "*"
HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
"""RFC 9110, 5.6.2."""


class Provider(StrEnum):
    """Whose dialect a deployment speaks."""

    OWN = "baton"
    OPENAI = "openai"
    HOSTED_VLLM = "hosted_vllm"
    ANTHROPIC = "anthropic"


class Strategy(StrEnum):
    """How one of a group's deployments is picked."""

    BY_WEIGHT = "simple-shuffle"
    LEAST_BUSY = "least-busy"


BASES = {
    Provider.OPENAI: "https://api.openai.com/v1",
    Provider.ANTHROPIC: "https://api.anthropic.com",
}
KEYS = {Provider.OPENAI: "OPENAI_API_KEY", Provider.ANTHROPIC: "ANTHROPIC_API_KEY"}
"""The variables that hold a key where none is given."""
BASE_VARIABLES = {
    Provider.OPENAI: ("OPENAI_BASE_URL", "OPENAI_API_BASE"),
    Provider.ANTHROPIC: ("ANTHROPIC_API_BASE", "ANTHROPIC_BASE_URL"),
    Provider.HOSTED_VLLM: ("HOSTED_VLLM_API_BASE",),
}
"""The variables that hold an address where none is given, as LiteLLM looks for them."""
ELSEWHERE = {
    "general_settings": "is LiteLLM's own server's; here keys are --keys-db and --admin-api-key",
    "environment_variables": "is not read: set them in the server's environment",
    "include": "is not read: write one file",
}
KNOWN_NAMES = {
    "gpt-": Provider.OPENAI,
    "chatgpt-": Provider.OPENAI,
    "ft:gpt-": Provider.OPENAI,
    "text-embedding-": Provider.OPENAI,
    "o1": Provider.OPENAI,
    "o3": Provider.OPENAI,
    "o4": Provider.OPENAI,
    "claude-": Provider.ANTHROPIC,
}
"""Models that LiteLLM knows without their provider's name."""
DEFAULT_TIMEOUT_S = 600.0
DEFAULT_COOLDOWN_S = 5.0
DEFAULT_ALLOWED_FAILS = 3
DEFAULT_RETRIES = 2
DEFAULT_MAX_FALLBACKS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentSettings:
    """One place where a group's requests may go. `order` lowest first; `rpm` and `tpm` are requests and tokens a minute."""

    deployment_id: str
    group: str
    provider: Provider
    model: str
    api_base: str = ""
    api_key: str = field(default="", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    weight: float | None = None
    order: int = 1
    rpm: int | None = None
    tpm: int | None = None
    max_parallel_requests: int | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S
    first_token_s: float = DEFAULT_TIMEOUT_S
    drops_params: bool = False

    @property
    def is_own(self) -> bool:
        """Whether it is our pools."""
        return self.provider is Provider.OWN


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSettings:
    """Everything that the file says. `fallbacks` and `context_fallbacks` name the groups to try after a group."""

    deployments: tuple[DeploymentSettings, ...]
    strategy: Strategy = Strategy.BY_WEIGHT
    num_retries: int = DEFAULT_RETRIES
    retry_after_s: float = 0.0
    allowed_fails: int = DEFAULT_ALLOWED_FAILS
    cooldown_s: float = DEFAULT_COOLDOWN_S
    max_fallbacks: int = DEFAULT_MAX_FALLBACKS
    fallbacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    context_fallbacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)


def read_settings(path: Path, variables: Mapping[str, str]) -> RouterSettings:
    """The file's. Raises ConfigError that names the file and the field."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(text) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: is larger than {MAX_FILE_BYTES} bytes")
    try:
        values = read_document(text)
    except ValueError as error:
        raise ConfigError(f"{path}: is no YAML: {error}") from error
    return _Reader(str(path), variables).settings(values)


def check_own(settings: RouterSettings, served_names: Sequence[str]) -> None:
    """Raise ConfigError for a deployment of our own pools that serve no such model."""
    for one in settings.deployments:
        if one.is_own and one.model not in served_names:
            told = f"there is no model {one.model!r} here; served: {', '.join(served_names)}"
            raise ConfigError(f"--router-config: deployment {one.deployment_id!r}: {told}")


def names_of(settings: RouterSettings) -> tuple[str, ...]:
    """What clients may ask for: groups, and other names for them."""
    groups = dict.fromkeys(one.group for one in settings.deployments)
    return (*groups, *settings.aliases)


class _Reader:
    def __init__(self, where: str, variables: Mapping[str, str]) -> None:
        self._where = where
        self._variables = variables

    def settings(self, values: object) -> RouterSettings:
        """All of a file."""
        top = Section(values, self._where, self._variables)
        router, lite = top.within("router_settings"), top.within("litellm_settings")
        common = self._common(router, lite)
        drops = lite.switch("drop_params")
        entries = top.get("model_list")
        for name, why in ELSEWHERE.items():
            if top.has(name):
                top.refuse(name, why)
        top.done()
        if not isinstance(entries, list) or not entries:
            top.refuse("model_list", "must be a list of deployments")
        if len(entries) > MAX_DEPLOYMENTS:
            top.refuse("model_list", f"must have at most {MAX_DEPLOYMENTS} entries")
        defaults = self._timeouts(router, lite)
        router.done()
        lite.done()
        deployments = self._deployments(entries, defaults, drops=drops)
        settings = RouterSettings(deployments=deployments, **common)
        self._check_groups(settings)
        return settings

    def _common(self, router: Section, lite: Section) -> dict[str, Any]:
        strategy = router.text("routing_strategy", Strategy.BY_WEIGHT)
        if strategy not in set(Strategy):
            router.refuse("routing_strategy", f"must be one of {', '.join(Strategy)}")
        if router.switch("enable_pre_call_checks"):
            router.refuse("enable_pre_call_checks", "is not supported: deployments tell it first")
        told: dict[str, Any] = {
            "num_retries": self._either(router, lite, "num_retries", whole=True),
            "allowed_fails": self._either(router, lite, "allowed_fails", whole=True),
            "cooldown_s": self._either(router, lite, "cooldown_time"),
            "retry_after_s": router.number("retry_after"),
            "max_fallbacks": router.whole("max_fallbacks"),
        }
        if router.switch("disable_cooldowns"):
            told["cooldown_s"] = 0.0
        fallbacks = lite.names("fallbacks") | router.names("fallbacks")
        if always := lite.several("default_fallbacks") or router.several("default_fallbacks"):
            fallbacks.setdefault(ANY_GROUP, always)
        named = "context_window_fallbacks"
        return {name: value for name, value in told.items() if value is not None} | {
            "strategy": Strategy(strategy),
            "fallbacks": fallbacks,
            "context_fallbacks": lite.names(named) | router.names(named),
            "aliases": self._aliases(router),
        }

    @staticmethod
    def _either(
        router: Section, lite: Section, name: str, *, whole: bool = False
    ) -> float | int | None:
        values = [one.whole(name) if whole else one.number(name) for one in (router, lite)]
        return next((value for value in values if value is not None), None)

    @staticmethod
    def _aliases(router: Section) -> dict[str, str]:
        return router.within("model_group_alias").texts()

    @staticmethod
    def _timeouts(router: Section, lite: Section) -> tuple[float, float | None]:
        """Of whole answers, and of the time to a first token."""
        told = router.seconds("timeout"), lite.seconds("request_timeout")
        whole = next((value for value in told if value), DEFAULT_TIMEOUT_S)
        return whole, router.seconds("stream_timeout")

    def _deployments(
        self, entries: Sequence[object], defaults: tuple[float, float | None], *, drops: bool
    ) -> tuple[DeploymentSettings, ...]:
        found: list[DeploymentSettings] = []
        counts: dict[str, int] = {}
        for index, entry in enumerate(entries):
            where = f"{self._where}: model_list[{index}]"
            section = Section(entry, where, self._variables)
            group = section.one_name("model_name")
            counts[group] = counts.get(group, 0) + 1
            info = section.within("model_info")
            deployment_id = info.text("id", f"{group}/{counts[group]}")
            info.get("mode")
            info.get("description")
            info.done()
            params = section.within("litellm_params")
            section.done()
            found.append(self._deployment(params, group, deployment_id, defaults, drops=drops))
        ids = [deployment.deployment_id for deployment in found]
        if twice := next((one for one in ids if ids.count(one) > 1), None):
            raise ConfigError(f"{self._where}: model_info.id {twice!r} is there twice")
        return tuple(found)

    def _deployment(
        self,
        params: Section,
        group: str,
        deployment_id: str,
        defaults: tuple[float, float | None],
        *,
        drops: bool,
    ) -> DeploymentSettings:
        provider, model = self._model(params)
        timeout_s = params.seconds("timeout") or defaults[0]
        settings = DeploymentSettings(
            deployment_id=deployment_id,
            group=group,
            provider=provider,
            model=model,
            api_base=self._base(params, provider),
            api_key=self._key(params, provider),
            headers=self._headers(params),
            weight=params.number("weight"),
            order=1 if (order := params.whole("order")) is None else order,
            rpm=params.whole("rpm", 1),
            tpm=params.whole("tpm", 1),
            max_parallel_requests=params.whole("max_parallel_requests", 1),
            timeout_s=timeout_s,
            first_token_s=params.seconds("stream_timeout") or defaults[1] or timeout_s,
            drops_params=params.switch("drop_params") or drops,
        )
        params.done()
        return settings

    @staticmethod
    def _model(params: Section) -> tuple[Provider, str]:
        told = params.one_name("model")
        name, _, model = told.partition("/")
        if name in set(Provider) and model:
            return Provider(name), model
        known = next((it for begin, it in KNOWN_NAMES.items() if told.startswith(begin)), None)
        if known is None:
            told = f"must begin with one of {', '.join(f'{it}/' for it in Provider)}"
            params.refuse("model", told)
        return known, params.text("model")

    @staticmethod
    def _headers(params: Section) -> dict[str, str]:
        headers = params.within("extra_headers").texts()
        for name, value in headers.items():
            if not HEADER_NAME.fullmatch(name) or not _is_plain(value):
                params.refuse(f"extra_headers.{name[:80]!r}", "must be a name and printable text")
        if params.get("organization") is not None:
            headers["OpenAI-Organization"] = params.text("organization")
            if not _is_plain(headers["OpenAI-Organization"]):
                params.refuse("organization", "must be printable text")
        return headers

    def _base(self, params: Section, provider: Provider) -> str:
        name = "api_base" if params.has("api_base") else "base_url"
        others = {"api_base", "base_url"} - {name}
        base = params.get(name)
        for other in others:
            if params.get(other) is not None:
                params.refuse(other, f"and {name} say the same")
        if provider is Provider.OWN:
            if base is not None:
                params.refuse(name, "makes no sense for our own pools")
            return ""
        if base is None:
            name, base = self._usual_base(provider)
        if not isinstance(base, str):
            params.refuse("api_base", "is missing")
        parts = _parts_of(base)
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
            params.refuse(name, "must be a URL such as http://host:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            params.refuse(name, "must hold no credentials and no query: keys go into api_key")
        base = base.rstrip("/")
        return base.removesuffix("/v1/messages") if provider is Provider.ANTHROPIC else base

    def _usual_base(self, provider: Provider) -> tuple[str, str | None]:
        for variable in BASE_VARIABLES[provider]:
            if told := self._variables.get(variable):
                return f"api_base, which is {variable},", told
        return "api_base", BASES.get(provider)

    def _key(self, params: Section, provider: Provider) -> str:
        name, key = "api_key", params.get("api_key")
        if key is None:
            variable = KEYS.get(provider)
            if variable is None or params.has("api_base") or params.has("base_url"):
                return ""
            if variable not in self._variables:
                params.refuse("api_key", f"is missing, and {variable} is not set")
            name, key = f"api_key, which is {variable},", self._variables[variable]
        if not isinstance(key, str) or not _is_plain(key):
            params.refuse(name, "must be printable text")
        return key

    def _check_groups(self, settings: RouterSettings) -> None:
        groups = {deployment.group for deployment in settings.deployments}
        if both := next((alias for alias in settings.aliases if alias in groups), None):
            told = f"has {both!r}, which is a model_name itself"
            raise ConfigError(f"{self._where}: model_group_alias {told}")
        named = {
            "fallbacks": settings.fallbacks,
            "context_window_fallbacks": settings.context_fallbacks,
            "model_group_alias": {alias: (to,) for alias, to in settings.aliases.items()},
        }
        for field_name, lists in named.items():
            for key, others in lists.items():
                is_new = field_name == "model_group_alias" or key == ANY_GROUP
                wrong = [
                    name for name in (*(() if is_new else (key,)), *others) if name not in groups
                ]
                if wrong:
                    told = f"names {wrong[0]!r}, which is no model_name of model_list"
                    raise ConfigError(f"{self._where}: {field_name} {told}")


def _is_plain(text: str) -> bool:
    """Whether a header can have it."""
    return text.isascii() and text.isprintable()


def _parts_of(url: str) -> SplitResult | None:
    """Of a URL as it goes over the wire; None for what is none."""
    if not _is_plain(url) or " " in url:
        return None
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts
