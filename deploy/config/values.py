"""What the text of an option may say. Owns every grammar: a parser turns text into a value, or raises ValueError with a sentence.

Pure: what a value means on this machine is told in `deploy.host` and `deploy.launch`, which are above.
"""

from __future__ import annotations

import ipaddress
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from deploy.config.spelling import did_you_mean
from protocol.errors import InvalidRequest
from protocol.keep_alive import parse_keep_alive
from protocol.roles import COMPUTING, Role

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_UTILIZATION = "0.9"
LOCAL = "local"
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "k": KIB,
    "m": MIB,
    "g": GIB,
    "t": GIB * KIB,
    "kib": KIB,
    "mib": MIB,
    "gib": GIB,
    "tib": GIB * KIB,
}
_MOST_DIGITS = 30
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)


def text(value: str) -> str:
    """Any text that says something."""
    if not value.strip():
        raise ValueError("is empty")
    return value


def whole(minimum: int, maximum: int = 2**31 - 1) -> Callable[[str], int]:
    """A parser of whole numbers within bounds; `8k` is 8000 and `8K` is 8192, as in vLLM."""
    units = {"k": 1000, "K": 1024, "m": 10**6, "M": 1 << 20}

    def parse(value: str) -> int:
        digits, unit = (value[:-1], units[value[-1]]) if value[-1:] in units else (value, 1)
        digits = digits.replace("_", "")
        if not digits.removeprefix("-").isdecimal():
            raise ValueError(f"{value!r} is not a whole number")
        number = int(digits) * unit
        if not minimum <= number <= maximum:
            raise ValueError(f"{number} is outside {minimum}…{maximum}")
        return number

    return parse


def seconds(value: str) -> float:
    """A duration: `30`, `30s`, `1.5`."""
    try:
        number = float(value.removesuffix("s"))
    except ValueError:
        raise ValueError(f"{value!r} is not a number of seconds") from None
    if not math.isfinite(number) or not 0 < number <= 86400:
        raise ValueError(f"{value} is outside 0…86400 seconds")
    return number


def keep_alive(value: str) -> float:
    """Seconds without use: `5m`, `300`, `0`; negative is for ever."""
    try:
        return parse_keep_alive(value, "it") or 0.0
    except InvalidRequest as error:
        raise ValueError(str(error)) from None


def cpus(value: str) -> float:
    """A number of CPUs, as Ray counts them: `4`, `0.5`."""
    try:
        number = float(value)
    except ValueError:
        raise ValueError(f"{value!r} is not a number of CPUs") from None
    if not math.isfinite(number) or not 0 <= number <= 4096:
        raise ValueError(f"{value} is outside 0…4096 CPUs")
    return number


def number(least: float, most: float = math.inf) -> Callable[[str], float]:
    """A parser of finite numbers within bounds."""
    limit = f"{least:g} or more" if math.isinf(most) else f"{least:g} to {most:g}"

    def parse(value: str) -> float:
        found = _float(value)
        if not least <= found <= most:
            raise ValueError(f"must be {limit}")
        return found

    return parse


def positive(value: str) -> float:
    """A finite number above zero."""
    found = _float(value)
    if found <= 0:
        raise ValueError("must be more than 0")
    return found


def _float(value: str) -> float:
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"{value!r} is not a number")
    return found


class Choice:
    """A parser of one of `names`. `meant` are what other servers call them; `refused` has what is said of the rest."""

    def __init__(
        self,
        *names: str,
        meant: dict[str, str] | None = None,
        refused: dict[str, str] | None = None,
    ) -> None:
        self.names = names
        self._meant, self._refused = meant or {}, refused or {}

    def __call__(self, value: str) -> str:
        """The name, in small letters."""
        word = value.lower()
        if word in self._refused:
            raise ValueError(f"{value!r} {self._refused[word]}")
        name = self._meant.get(word, word)
        if name not in self.names:
            near = did_you_mean(word, self.names)
            raise ValueError(f"{value!r} is not one of {', '.join(self.names)}{near}")
        return name


tool_call_parser = Choice(
    *("auto", "off", "hermes", "llama3_json", "mistral", "pythonic"),
    meant={
        "qwen": "hermes",
        "qwen25": "hermes",
        "llama3": "llama3_json",
        "llama4_pythonic": "pythonic",
        "none": "off",
    },
)
reasoning_parser = Choice(
    *("auto", "off", "think"),
    meant={"qwen3": "think", "deepseek_r1": "think", "deepseek-r1": "think", "none": "off"},
)
pooling = Choice("none", "mean", "last", "cls", meant={"off": "none"})
tool_prompt = Choice("auto", "off", "hermes", meant={"none": "off"})
_NO_HALF = "is not supported on CPUs: use bfloat16 or float32 (or auto)"
dtype = Choice(
    *("auto", "float32", "bfloat16"),
    meant={"float": "float32"},
    refused=dict.fromkeys(("half", "float16", "fp16"), _NO_HALF),
)
quantization = Choice(
    *("none", "int8"),
    refused=dict.fromkeys(
        (
            *("awq", "awq_marlin", "gptq", "gptq_marlin", "fp8", "bitsandbytes", "gguf"),
            *("compressed-tensors", "torchao", "marlin", "int4", "mxfp4"),
        ),
        "is not there: use int8, which is made of any model's weights when they are loaded (GGUF files are read without it)",
    ),
)
load_format = Choice("auto", "dummy", meant={"safetensors": "auto", "gguf": "auto"})
"""What vLLM calls safetensors and gguf is found from the files."""


def block_size(value: str) -> int:
    """A power of two: kernels and block keys rely on it."""
    number = whole(1, 256)(value)
    if number & (number - 1):
        raise ValueError(f"{number} is not a power of two: use 16 or 32")
    return number


def url(value: str) -> str:
    """Where a server is."""
    try:
        parts = urlsplit(value)
        host = (parts.hostname or "").encode("idna")
        is_one = parts.scheme in ("http", "https") and bool(host) and parts.port != 0
    except ValueError:  # a port that is none, or a name that no name server has
        is_one = False
    if not is_one or not value.isprintable() or " " in value:
        raise ValueError(f"{value!r} is no URL; write http://127.0.0.1:8000")
    return value


def proxy(value: str) -> str:
    """An address or a network, or * for every one."""
    try:
        return value if value == "*" else str(ipaddress.ip_network(value.strip()))
    except ValueError:
        raise ValueError(
            f"{value!r} is no address or network: write 10.0.0.7 or 10.0.0.0/8"
        ) from None


def header_key(value: str) -> str:
    """A key as it can be sent in a header."""
    if not value.isascii() or not value.isprintable():
        raise ValueError("a key has printable ASCII characters only")
    return value


def traces_endpoint(value: str) -> str:
    """A URL of an OTLP/HTTP collector; without a path it gets the one that collectors listen on."""
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"{value!r} is not an OTLP/HTTP address: write http://127.0.0.1:4318/v1/traces "
            "(gRPC is not spoken)"
        )
    return value if parts.path.strip("/") else f"{value.rstrip('/')}/v1/traces"


def switch(value: str) -> bool:
    """What a variable or file may say for yes and no."""
    word = value.strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise ValueError(f"{value!r} is neither true nor false")


# ---- sizes of memory


def parse_bytes(text: str) -> int:
    """`2GiB`, `512M` (binary), `1.5GB` (decimal) or plain bytes; ValueError otherwise."""
    match = _SIZE.fullmatch(text.strip().replace("_", ""))
    if match is None or match[2].lower() not in _UNITS or len(match[1]) > _MOST_DIGITS:
        raise ValueError(f"{text!r} is not a size: write 2GiB, 512MiB, 1.5GB or a count of bytes")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def format_bytes(size: int) -> str:
    """The size in the largest binary unit that keeps it above one."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} B"


# ---- cores

MAX_CORES = 1 << 16
"""More than any kernel numbers."""


def parse_cores(text: str) -> tuple[int, ...]:
    """`0-3,8` → (0, 1, 2, 3, 8); ValueError on anything else."""
    cores: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"{text!r} is not a list of cores: write 0-3,8")
        least, most = int(first), int(last if dash else first)
        if not least <= most < MAX_CORES:
            raise ValueError(f"{part.strip()!r} is no range of cores: write 0-3, below {MAX_CORES}")
        cores.extend(range(least, most + 1))
    if not cores or len(set(cores)) != len(cores):
        raise ValueError(f"{text!r} names no core, or one twice")
    return tuple(cores)


def parse_affinity(text: str) -> str:
    """`auto`, `none`, one list for all, or a list for each worker separated by `;`: checked, kept as text."""
    if text not in ("auto", "none"):
        for group in text.split(";"):
            parse_cores(group)
    return text


# ---- parts of a GPU


@dataclass(frozen=True)
class Utilization:
    """`whole` of a GPU is for all its workers together, or each worker takes its role's part."""

    whole: float | None
    parts: dict[Role, float]

    def part(self, role: Role, num_sharing: int) -> float:
        """Of the GPU, for one worker of that role beside `num_sharing - 1` others."""
        return self.parts[role] if self.whole is None else self.whole / num_sharing


def parse_utilization(text: str) -> Utilization:
    """`0.9`, or `prefill=0.3,decode=0.6`; ValueError says what to write."""
    if "=" not in text:
        return Utilization(_fraction(text), {})
    parts: dict[Role, float] = {}
    for word in text.split(","):
        name, _, value = word.strip().partition("=")
        if name not in COMPUTING:
            raise ValueError(f"{name!r} is no role: write prefill=0.3,decode=0.6")
        parts[Role(name)] = _fraction(value)
    if len(parts) != len(COMPUTING):
        raise ValueError("names one role only: write prefill=0.3,decode=0.6, or one number")
    return Utilization(None, parts)


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number between 0 and 1") from None
    if not 0.0 < value <= 1.0:
        raise ValueError(f"{text} is not between 0 and 1")
    return value


def utilization_text(text: str) -> str:
    """Checked, kept as text."""
    parse_utilization(text)
    return text


# ---- Ray


def parse_ray_address(value: str) -> str:
    """`auto`, `local` or HOST:PORT; ValueError says what to write."""
    if value in ("auto", LOCAL):
        return value
    host, _, port = value.rpartition(":")
    if "://" in value or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(
            f"{value!r} is no address of a Ray head: write auto, local, or HOST:PORT as in 10.0.0.1:6379"
        )
    return value
