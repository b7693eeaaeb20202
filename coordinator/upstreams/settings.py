"""A router's configuration file. Owns what of LiteLLM's `config.yaml` is read, and refuses the rest by name.

    model_list:           model_name (the group), litellm_params (where, how much), model_info.id
    router_settings:      routing_strategy, num_retries, timeouts, cooldowns, fallbacks
    litellm_settings:     what of these LiteLLM takes there, too

A value `os.environ/NAME` is that variable's. `baton/NAME` is a model of our own pools, `openai/`, `hosted_vllm/` (what vLLM's
server knows besides, as Baton does) and `anthropic/` are servers that speak those dialects. Values of keys are in no message.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

import yaml

from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

MAX_FILE_BYTES = 1 << 20
MAX_DEPLOYMENTS = 1000
ENVIRONMENT = "os.environ/"
ANY_GROUP = "*"


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
KNOWN_NAMES = {
    "gpt-": Provider.OPENAI,
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
        values = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is no YAML: {' '.join(str(error).split())[:300]}") from error
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


class _Section:
    """Some named values; what was not asked for when it is done is refused."""

    def __init__(self, values: object, where: str, variables: Mapping[str, str]) -> None:
        if not isinstance(values, dict):
            raise ConfigError(f"{where} must be a mapping of names to values")
        self._values = values
        self._where = where
        self._variables = variables
        self._known: set[str] = set()

    def refuse(self, name: str, why: str) -> NoReturn:
        """Say which field it is."""
        raise ConfigError(f"{self._where}: {name} {why}")

    def get(self, name: str) -> Any:
        """The value, with its variable's in its place; None where there is none."""
        self._known.add(name)
        value = self._values.get(name)
        if isinstance(value, str) and value.startswith(ENVIRONMENT):
            variable = value.removeprefix(ENVIRONMENT)
            if variable not in self._variables:
                self.refuse(name, f"needs the environment variable {variable}, which is not set")
            return self._variables[variable]
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A text that says something."""
        value = self.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or not value.strip():
            self.refuse(name, "must be a text" if value is not None else "is missing")
        return value

    def number(self, name: str, least: float = 0.0) -> float | None:
        """A finite number, of at least `least`."""
        value = self.get(name)
        if value is None:
            return None
        if isinstance(value, str):
            value = self._number_in(name, value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(name, "must be a number")
        if not math.isfinite(value) or value < least:
            self.refuse(name, f"must be a number of at least {least:g}, but is {value}")
        return float(value)

    def _number_in(self, name: str, text: str) -> float:
        """Variables are text."""
        try:
            return float(text)
        except ValueError:
            self.refuse(name, "must be a number")

    def whole(self, name: str, least: int = 0) -> int | None:
        """A whole number."""
        value = self.number(name, least)
        if value is not None and (value != int(value) or value > 2**53):
            self.refuse(name, f"must be a whole number, but is {value:g}")
        return None if value is None else int(value)

    def switch(self, name: str) -> bool:
        """True or false."""
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            self.refuse(name, "must be true or false")
        return bool(value)

    def names(self, name: str) -> dict[str, tuple[str, ...]]:
        """`[{a: [b, c]}, …]`, as fallbacks are written."""
        told = self.get(name)
        if told is None:
            return {}
        if not isinstance(told, list) or not all(isinstance(one, dict) for one in told):
            self.refuse(name, "must be a list such as [{group: [other group]}]")
        found: dict[str, tuple[str, ...]] = {}
        for one in told:
            for group, others in one.items():
                found[str(group)] = self._several(f"{name}.{group}", others)
        return found

    def several(self, name: str) -> tuple[str, ...]:
        """A list of texts."""
        value = self.get(name)
        return () if value is None else self._several(name, value)

    def _several(self, name: str, value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            self.refuse(name, "must be a list of names")
        return tuple(value)

    def within(self, name: str) -> _Section:
        """A section of it; an empty one where there is none."""
        value = self.get(name)
        where = f"{self._where}: {name}"
        return _Section({} if value is None else value, where, self._variables)

    def has(self, name: str) -> bool:
        """Whether it says something of it."""
        return self._values.get(name) is not None

    def texts(self) -> dict[str, str]:
        """All of it, as text."""
        return {str(name): self.text(name) for name in self._values}

    def done(self) -> None:
        """Raise ConfigError for what nobody asked for."""
        others = [str(name) for name in self._values if name not in self._known]
        if others:
            told = f"is not known here; known: {', '.join(sorted(map(str, self._known)))}"
            self.refuse(others[0][:80], told)


class _Reader:
    def __init__(self, where: str, variables: Mapping[str, str]) -> None:
        self._where = where
        self._variables = variables

    def settings(self, values: object) -> RouterSettings:
        """All of a file."""
        top = _Section(values, self._where, self._variables)
        router, lite = top.within("router_settings"), top.within("litellm_settings")
        common = self._common(router, lite)
        drops = lite.switch("drop_params")
        entries = top.get("model_list")
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

    def _common(self, router: _Section, lite: _Section) -> dict[str, Any]:
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
        router: _Section, lite: _Section, name: str, *, whole: bool = False
    ) -> float | int | None:
        values = [one.whole(name) if whole else one.number(name) for one in (router, lite)]
        return next((value for value in values if value is not None), None)

    @staticmethod
    def _aliases(router: _Section) -> dict[str, str]:
        return router.within("model_group_alias").texts()

    @staticmethod
    def _timeouts(router: _Section, lite: _Section) -> tuple[float, float | None]:
        """Of whole answers, and of the time to a first token."""
        told = router.number("timeout"), lite.number("request_timeout")
        whole = next((value for value in told if value), DEFAULT_TIMEOUT_S)
        return whole, router.number("stream_timeout")

    def _deployments(
        self, entries: Sequence[object], defaults: tuple[float, float | None], *, drops: bool
    ) -> tuple[DeploymentSettings, ...]:
        found: list[DeploymentSettings] = []
        counts: dict[str, int] = {}
        for index, entry in enumerate(entries):
            where = f"{self._where}: model_list[{index}]"
            section = _Section(entry, where, self._variables)
            group = section.text("model_name")
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
        params: _Section,
        group: str,
        deployment_id: str,
        defaults: tuple[float, float | None],
        *,
        drops: bool,
    ) -> DeploymentSettings:
        provider, model = self._model(params)
        headers = params.within("extra_headers").texts()
        if organization := params.get("organization"):
            headers["OpenAI-Organization"] = str(organization)
        timeout_s = params.number("timeout") or defaults[0]
        settings = DeploymentSettings(
            deployment_id=deployment_id,
            group=group,
            provider=provider,
            model=model,
            api_base=self._base(params, provider),
            api_key=self._key(params, provider),
            headers=headers,
            weight=params.number("weight"),
            order=params.whole("order") or 1,
            rpm=params.whole("rpm", 1),
            tpm=params.whole("tpm", 1),
            max_parallel_requests=params.whole("max_parallel_requests", 1),
            timeout_s=timeout_s,
            first_token_s=params.number("stream_timeout") or defaults[1] or timeout_s,
            drops_params=params.switch("drop_params") or drops,
        )
        params.done()
        return settings

    @staticmethod
    def _model(params: _Section) -> tuple[Provider, str]:
        told = params.text("model")
        name, _, model = told.partition("/")
        if name in set(Provider) and model:
            return Provider(name), model
        known = next((it for begin, it in KNOWN_NAMES.items() if told.startswith(begin)), None)
        if known is None:
            told = f"must begin with one of {', '.join(f'{it}/' for it in Provider)}"
            params.refuse("model", told)
        return known, params.text("model")

    @staticmethod
    def _base(params: _Section, provider: Provider) -> str:
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
        base = base if base is not None else BASES.get(provider)
        if not isinstance(base, str):
            params.refuse("api_base", "is missing")
        parts = urlsplit(base)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            params.refuse(name, "must be a URL such as http://host:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            params.refuse(name, "must hold no credentials and no query: keys go into api_key")
        return base.rstrip("/")

    def _key(self, params: _Section, provider: Provider) -> str:
        key = params.get("api_key")
        if key is None:
            variable = KEYS.get(provider)
            if variable is not None and not params.has("api_base") and not params.has("base_url"):
                if variable not in self._variables:
                    params.refuse("api_key", f"is missing, and {variable} is not set")
                return self._variables[variable]
            return ""
        if not isinstance(key, str) or not key.isascii() or not key.isprintable():
            params.refuse("api_key", "must be printable text")
        return key

    def _check_groups(self, settings: RouterSettings) -> None:
        groups = {deployment.group for deployment in settings.deployments}
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
