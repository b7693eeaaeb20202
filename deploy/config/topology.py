"""What surrounds Baton: the environment, the cache directory, and the shape of the pools.

The only reader of environment variables. Must not know what options mean; `deploy.config.serve_config` does.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import ConfigError
from protocol.ids import MAX_WORKERS, worker_name
from protocol.roles import Role

PREFIX = "BATON_"
HOME = Path(__file__).resolve().parents[2]
"""The folder of Baton's packages: a child looks there first, whatever else an environment has under their names."""
OWN_SECRETS = ("BATON_API_KEY", "BATON_ADMIN_API_KEY")
"""Never handed on to a child process, which is told in a file: an environment can be read by others of the same user."""
_SECRET_WORDS = frozenset(
    {"KEY", "APIKEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIALS", "CREDENTIAL"}
)
"""A variable with one of these between its underscores holds what a child that asks no other server need not know."""
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
_PD = re.compile(r"(\d{1,3})p(\d{1,3})d(?:(\d{1,3})s)?", re.IGNORECASE)


@dataclass(frozen=True)
class Pools:
    """How many workers each pool has: the field's `xPyD`, and stores. Zero prefill is the colocated baseline."""

    prefill: int
    decode: int
    store: int = 0

    def __str__(self) -> str:
        return f"{self.prefill}p{self.decode}d" + (f"{self.store}s" if self.store else "")

    @property
    def total(self) -> int:
        """Workers that compute."""
        return self.prefill + self.decode

    def worker_ids(self, key: str = "") -> list[tuple[str, Role]]:
        """`(worker id, role)` of every worker, prefill first; `key` is that of a fleet's model."""
        counts = ((Role.PREFILL, self.prefill), (Role.DECODE, self.decode))
        return [(worker_name(key, role, i), role) for role, n in counts for i in range(n)]

    def store_ids(self, key: str = "") -> list[str]:
        """Names of the stores."""
        return [worker_name(key, Role.STORE, i) for i in range(self.store)]


def parse_pd(text: str) -> Pools:
    """`2p1d` → two prefill workers and one decode worker, `2p1d1s` with a store; ValueError says what to write."""
    match = _PD.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f"{text!r} is not a shape: write 1p1d, 2p4d, or 0p1d for one colocated worker; 1p1d1s has a store as well"
        )
    pools = Pools(int(match[1]), int(match[2]), int(match[3] or 0))
    if pools.decode == 0:
        raise ValueError(f"{text!r} has no decode worker: at least one is needed, as in 1p1d")
    if pools.total + pools.store > MAX_WORKERS:
        raise ValueError(f"{text!r} has more than {MAX_WORKERS} workers")
    return pools


def path_at(text: str, what: str) -> Path:
    """A path that a person wrote, whose `~` is a home; ConfigError names `what` where there is no such home."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(
            f"{what}: {text!r}: there is no home of that user; write the whole path"
        ) from None


def environment() -> dict[str, str]:
    """Baton's own variables, `BATON_…`."""
    return {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}


def all_variables() -> dict[str, str]:
    """Every variable: a router's file names those that it wants."""
    return dict(os.environ)


def cache_directory() -> Path:
    """Where prepared models are kept: BATON_CACHE, or `baton` in the user's cache directory."""
    chosen = os.environ.get("BATON_CACHE")
    if chosen:
        return path_at(chosen, "BATON_CACHE").resolve()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "baton"


def ray_address_variable() -> str | None:
    """RAY_ADDRESS, which Ray sets for the jobs that it runs."""
    return os.environ.get("RAY_ADDRESS") or None


def ray_address_file() -> Path:
    """Where `ray start` leaves the address of the head that runs on this machine."""
    return Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray" / "ray_current_cluster"


def visible_devices() -> str | None:
    """CUDA_VISIBLE_DEVICES, by which others decide which GPUs are ours."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def has_ray_token() -> bool:
    """Whether Ray's clients would find a token, and nothing says whether to use it."""
    if os.environ.get("RAY_AUTH_MODE"):
        return False
    places = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    default = Path.home() / ".ray" / "auth_token"
    return any(os.environ.get(name) for name in places) or default.is_file()


def is_secret(name: str) -> bool:
    """Whether a variable of this name is taken for a secret: `OPENAI_API_KEY`, `HF_TOKEN`, `AWS_SECRET_ACCESS_KEY`."""
    return not _SECRET_WORDS.isdisjoint(name.upper().split("_"))


def child_environment(
    num_threads: int | None = None, gpu: str | None = None, *, keeps_secrets: bool = False
) -> dict[str, str]:
    """This environment without secrets, with thread pools sized to `num_threads` and only `gpu` visible where given.
    `keeps_secrets` is for a child that asks other servers; Baton's own keys it does not get either."""
    variables = {
        name: value
        for name, value in os.environ.items()
        if name not in OWN_SECRETS and (keeps_secrets or not is_secret(name))
    }
    variables["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(HOME), variables.get("PYTHONPATH")))
    )
    variables["PYTHONUNBUFFERED"] = "1"
    variables["TOKENIZERS_PARALLELISM"] = "false"
    if num_threads is not None:
        variables.update(dict.fromkeys(_THREAD_VARIABLES, str(num_threads)))
        # Spinning threads lose their core to clients and coordinator: measured 5x slower steps.
        variables.setdefault("OMP_WAIT_POLICY", "passive")
        # Where there are no own kernels: oneDNN keeps state of every shape, hundreds of MiB after some hundred prompts.
        variables.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
        variables.setdefault("LRU_CACHE_CAPACITY", "128")
    if gpu is not None:
        variables["CUDA_VISIBLE_DEVICES"] = gpu
    return variables
