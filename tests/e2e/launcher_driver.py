"""Runs a Launcher over fake children; its standard output says where it is.

usage: python -m tests.e2e.launcher_driver RUN_ROOT
"""

from __future__ import annotations

import asyncio
import functools
import os
import sys
from pathlib import Path

from deploy.config.serve_config import resolve
from deploy.host.run_directory import run_directory
from deploy.launch.local.launcher import Launcher, Modules
from deploy.launch.plan import Host, make_plan
from protocol.clock import SystemClock
from protocol.errors import BatonError, ConfigError
from protocol.model_config import ModelConfig
from protocol.specs import PreparedModel

CONFIG = ModelConfig(
    family="llama",
    vocab_size=100,
    hidden_size=64,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
    max_position_embeddings=2048,
)
MODEL = PreparedModel(
    name="tiny",
    served_names=("tiny",),
    directory="/nowhere",
    config=CONFIG,
    dtype="float32",
    weights_hash="0",
    tokenizer_hash="0",
)
FAKE = "tests.e2e.fake_child"
GRACE_S = 1.0
"""Children have so long to end, unless the file `grace` says otherwise."""


def tell(*words: object) -> None:
    """One line, at once."""
    print(*words, flush=True)


def main() -> int:
    """As `deploy.commands.serve`, with fakes."""
    config = resolve({"pd": "1p1d"}, {}).config
    with run_directory(Path(sys.argv[1])) as directory:
        plan = make_plan(config, MODEL, Host((0,), None, 1 << 34), directory, 0)
        behaviour = Path(os.environ["BATON_TEST_BEHAVIOUR"])
        available, grace = behaviour / "available", behaviour / "grace"
        grace_s = float(grace.read_text()) if grace.exists() else GRACE_S
        launcher = Launcher(plan, directory, SystemClock(), tell, grace_s, Modules(FAKE, FAKE))
        if available.exists():
            launcher.available_bytes = functools.partial(int, available.read_text())
        try:
            asyncio.run(launcher.run(lambda news: tell("READY", news)))
        except BatonError as error:
            tell("FAILED", error)
            return 2 if isinstance(error, ConfigError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
