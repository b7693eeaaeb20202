"""Random small models of every architecture and form of file, with random fields: the tokens of transformers, or refused by
name.

usage: python -m tests.property.model_grid [--cases N] [--seed FIRST] [--verbose]

    equal     the same greedy tokens                 refused   one sentence that names the file and a field of the case
    alone     transformers cannot load it, and ours can: nothing to compare with

The last line is a JSON object of the counts; the exit status is 1 where a case is neither.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from deploy.config.topology import cache_directory
from engine.checkpoints.prepare import prepare
from engine.checkpoints.prepared import read_manifest
from engine.checkpoints.source import open_checkpoint
from engine.model.rope import inverse_frequencies
from protocol.errors import ConfigError
from tests.greedy import expected_tokens, generate, load, random_prompts
from tests.model_files import write_tokenizer
from tests.property.model_fields import GONE, KINDS, LAYERS, POSITIONS, VOCAB, Case, draw_case

if TYPE_CHECKING:
    from collections.abc import Callable

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.2,
}
SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings"),
)
MOST = 8192
RELATED = frozenset(
    {*SIZES, "architectures", "model_type", "layer_types", "sliding_window", "max_window_layers"}
)
NUM_OUTPUT = 6
TIE = 2e-6
"""Logits of a few units that differ by no more are one: float32 adds in some order."""


def config_of(case: Case) -> dict[str, Any]:
    """What the case has as config.json."""
    name = case.architecture
    base = {"architectures": [f"{name}ForCausalLM"], "model_type": name.lower(), **BASE}
    return {key: value for key, value in (base | case.changes).items() if value is not GONE}


def known_to(case: Case, raw: dict[str, Any]) -> dict[str, Any]:
    """The same for transformers, which knows a model by its type alone."""
    return {"model_type": case.architecture.lower(), **raw}


def is_buildable(raw: dict[str, Any]) -> bool:
    """Whether a library that believes the file would not take all memory."""
    sizes = [raw.get(name) for name in SIZES]
    return all(size is None or (isinstance(size, int) and abs(size) <= MOST) for size in sizes)


def write_config(directory: Path, raw: dict[str, Any]) -> None:
    (directory / "config.json").write_text(json.dumps(raw), encoding="utf-8")


def stir(model: Any) -> None:
    """Biases and norms that matter."""
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "norm.weight")):
            torch.nn.init.normal_(parameter, mean=0.7, std=0.3)


def write_model(case: Case, directory: Path, raw: dict[str, Any]) -> None:
    """A checkpoint whose weights have the shapes that transformers finds in `raw`."""
    write_config(directory, raw)
    torch.manual_seed(case.seed)
    config = transformers.AutoConfig.from_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    stir(model)
    shard = {"max_shard_size": "60KB"} if case.form == "sharded" else {}
    model.save_pretrained(directory, **shard)
    (directory / "generation_config.json").unlink(missing_ok=True)


def peer_of(case: Case, directory: Path) -> Any:
    """transformers' model of the case, None where it has none; either way the checkpoint is complete."""
    raw, peer = config_of(case), None
    try:
        if is_buildable(raw):
            write_model(case, directory, known_to(case, raw))
            write_config(directory, known_to(case, raw))
            peer = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
            expected_tokens(peer, [3, 4, 5], 1)
    except Exception:  # noqa: BLE001 - whatever the reason, there is nothing to compare with
        plain = Case(case.seed, case.architecture, case.form, "", {})
        write_model(case, directory, config_of(plain))
        peer = None
    write_config(directory, raw)
    return peer


def leaves(value: Any) -> set[str]:
    """All names in an object."""
    if not isinstance(value, dict):
        return set()
    return {*map(str, value), *(name for inner in value.values() for name in leaves(inner))}


def refusal_fault(case: Case, sentence: str, *, is_whole: bool) -> str | None:
    """What is wrong with a sentence; None where it names the file and a field of the case. Only where transformers found
    out which shapes the weights have is it bound to be a field."""
    if "\n" in sentence or len(sentence) > 1000:
        return "not one sentence"
    if not is_whole and ("shape" in sentence or "tensor" in sentence):
        return None
    if "config.json" not in sentence and ".safetensors" not in sentence:
        return "names no file"
    needed = {name for names in KINDS.values() for name in names}
    if not any(f"{name}`" in sentence for name in leaves(case.changes) | RELATED | needed):
        return "names no field of the case"
    return None


def lengths_of(case: Any, positions: int) -> list[int]:
    longest = positions - NUM_OUTPUT
    if longest < 1:
        return []
    if case.is_long:
        return [4300]
    drawn = 5 + case.seed * 7919 % 600
    return sorted({min(5, longest), min(drawn, longest)})


def run_case(case: Case) -> tuple[str, str]:
    """(equal, refused, alone or fault, and why)."""
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        directory = Path(name) / "model"
        directory.mkdir()
        peer = peer_of(case, directory)
        write_tokenizer(directory, VOCAB)
        try:
            open_checkpoint(directory)
            prepared = prepare(
                directory, Path(name) / "cache", "float32", lambda stage, share: None
            )
        except ConfigError as error:
            fault = refusal_fault(case, str(error), is_whole=peer is not None)
            return ("fault", f"{fault}: {error}") if fault else ("refused", str(error))
        except Exception as error:  # noqa: BLE001 - a finding, to be shown with its case
            return "fault", f"{type(error).__name__}: {error}"
        if peer is None:
            return "alone", ""
        return compare(case, peer, prepared)


def rope_fault(peer: Any, prepared: Path) -> str | None:
    """Other frequencies can be too little to change a token."""
    config, rotary = read_manifest(prepared).config, peer.model.rotary_emb
    if not torch.allclose(inverse_frequencies(config), rotary.inv_freq, rtol=1e-6, atol=0):
        return f"other frequencies: {config.rope_scaling}, {peer.config.rope_parameters}"
    ours, theirs = config.rope_scaling.attention_factor, rotary.attention_scaling
    return None if math.isclose(ours, theirs, rel_tol=1e-6) else f"{ours} instead of {theirs}"


def compare(case: Any, peer: Any, prepared: Path) -> tuple[str, str]:
    """The greedy tokens of both."""
    lengths = lengths_of(case, peer.config.max_position_embeddings)
    prompts = random_prompts(lengths, min(VOCAB, peer.config.vocab_size), case.seed)
    try:
        expected = [expected_tokens(peer, prompt, NUM_OUTPUT) for prompt in prompts]
    except Exception as error:  # noqa: BLE001 - transformers has reasons of many kinds
        return "alone", f"{type(error).__name__}: {error}"
    if wrong := rope_fault(peer, prepared):
        return "fault", wrong
    runner = load(prepared, case.backend, cache_directory() / "kernels", num_blocks=320)
    found = generate(runner, prompts, NUM_OUTPUT, chunk=512 if case.is_long else 29)
    if not all(map(partial(agree, peer), prompts, expected, found)):
        return "fault", f"other tokens: {found} instead of {expected}"
    return "equal", ""


def agree(peer: Any, prompt: list[int], expected: list[int], found: list[int]) -> bool:
    """Whether these are the same tokens up to a tie, after which each may go its own way."""
    if found == expected:
        return True
    place = next(
        at for at, pair in enumerate(zip(expected, found, strict=True)) if len({*pair}) > 1
    )
    with torch.inference_mode():
        logits = peer(torch.tensor([prompt + expected[:place]])).logits[0, -1]
    return bool(torch.isclose(logits[expected[place]], logits[found[place]], rtol=TIE, atol=TIE))


def campaign(usage: str, draw: Callable[[int], Any], run: Callable[[Any], tuple[str, str]]) -> int:
    """Run the cases that the command line asks for, and tell what came of them."""
    parser = argparse.ArgumentParser(description=usage)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="show what was refused, or is alone")
    asked = parser.parse_args()
    transformers.utils.logging.set_verbosity(50)
    transformers.utils.logging.disable_progress_bar()
    counts: Counter[str] = Counter()
    for seed in range(asked.seed, asked.seed + asked.cases):
        case = draw(seed)
        verdict, why = run(case)
        counts[verdict] += 1
        if verdict == "fault" or (asked.verbose and verdict != "equal"):
            print(f"{verdict}: {case}\n  {why}")
    print(json.dumps({"cases": asked.cases, "first seed": asked.seed, **counts}))
    return 1 if counts["fault"] else 0


if __name__ == "__main__":
    sys.exit(campaign(str(__doc__), draw_case, run_case))
