"""Options of other servers that Baton does not have, and why. Owns the reasons; the command line refuses by them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Refusal:
    """An option of other servers that means nothing here; its `accepted` values change nothing."""

    name: str
    reason: str
    short: str | None = None
    accepted: tuple[str, ...] = ()


REFUSALS = (
    Refusal(
        "trust-remote-code",
        "Baton never runs code that comes with a model; remove the flag",
        accepted=("false",),
    ),
    Refusal(
        "tensor-parallel-size",
        "tensor parallelism is not there yet; use 1, and more workers with --pd 2p2d",
        "-tp",
        ("1",),
    ),
    Refusal(
        "pipeline-parallel-size",
        "pipeline parallelism is not there; use 1, and more workers with --pd 2p2d",
        "-pp",
        ("1",),
    ),
    Refusal("data-parallel-size", "add workers with --pd 2p2d instead", "-dp", ("1",)),
    Refusal(
        "kv-cache-dtype", "KV is kept in the model's --dtype; remove the flag", accepted=("auto",)
    ),
    Refusal("tokenizer", "the tokenizer is read from the model itself; remove the flag"),
    Refusal("generation-config", "the model's own is used; remove the flag", accepted=("auto",)),
    Refusal(
        "enforce-eager",
        "decode steps on a GPU always run as CUDA graphs; remove the flag",
        accepted=("", "true", "false"),
    ),
    Refusal(
        "enable-chunked-prefill",
        "prefill is always chunked; remove the flag",
        accepted=("", "true"),
    ),
    Refusal("kv-transfer-config", "workers are paired by Baton itself; choose with --transport"),
    Refusal(
        "disaggregation-mode", "one command starts both pools; choose their sizes with --pd 1p1d"
    ),
    Refusal(
        "kv-load-failure-policy",
        "a failed transfer is always computed again; remove the flag",
        accepted=("recompute",),
    ),
    Refusal(
        "enable-auto-tool-choice",
        "tools can always be called; remove the flag, or set --tool-call-parser off",
        accepted=("", "true"),
    ),
    Refusal("download-dir", "set the BATON_CACHE variable instead"),
    Refusal("uds", "a unix socket is not offered; use --host and --port"),
)
