"""What a model says of sampling. Owns which fields of a generation_config.json are used and which are not, and what the
keys of a GGUF file are called there; torch-free.

Every field of transformers' GenerationConfig is in one of four places: used (`_SAMPLING`, `do_sample`, ends of sequence),
refused unless its value asks for nothing (`_UNUSED`), the client's to say (lengths, numbers of answers, times), or without
effect on the tokens (caches but quantized ones, assistants, what is returned). `do_sample: false` is greedy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from engine.checkpoints.fields import MAX_INTEGER, Fields, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

_SAMPLING = {
    "temperature": 1e6,
    "top_p": 1.0,
    "top_k": MAX_INTEGER,
    "min_p": 1.0,
    "repetition_penalty": 1e6,
}
"""Fields of a generation_config.json that are used, and the most that each may be."""
_OFF: tuple[object, ...] = ([], {}, "", 0, False)
_EXACT_CACHES = (
    *("static", "offloaded_static", "dynamic", "offloaded", "paged"),
    *("sliding_window", "hybrid", "hybrid_chunked", "offloaded_hybrid"),
    *("offloaded_hybrid_chunked", "dynamic_full"),
)
_UNUSED: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(("num_beams", "num_beam_groups", "guidance_scale", "typical_p"), (1,)),
    **dict.fromkeys(("encoder_repetition_penalty",), (1,)),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), _OFF),
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "begin_suppress_tokens"), _OFF),
    **dict.fromkeys(("sequence_bias", "stop_strings", "force_words_ids", "constraints"), _OFF),
    **dict.fromkeys(("min_length", "min_new_tokens", "epsilon_cutoff", "eta_cutoff"), _OFF),
    **dict.fromkeys(("diversity_penalty", "penalty_alpha", "dola_layers", "token_healing"), _OFF),
    **dict.fromkeys(("top_h", "exponential_decay_length_penalty", "watermarking_config"), _OFF),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id"), ([],)),
    "cache_implementation": _EXACT_CACHES,
}
"""Fields that change what transformers generates and are not used here, and which of their values ask for nothing.
How long an answer may be, and how many there are, is the client's to say."""
GENERATION_FIELDS = frozenset({*_SAMPLING, *_UNUSED, "do_sample"})
_GGUF = "general.sampling."
_GGUF_NAMES = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
_GGUF_UNUSED: dict[str, tuple[object, ...]] = {
    "xtc_probability": (0,),
    "mirostat": (0,),
    "penalty_last_n": (-1, 0),
}
_GGUF_WITHOUT_EFFECT = frozenset({"sequence", "xtc_threshold", "mirostat_tau", "mirostat_eta"})
"""The order of samplers, and what belongs to samplers that are refused."""


def check_generation(raw: Mapping[str, Any], where: str) -> tuple[int, ...]:
    """The ends of sequence of a generation_config.json, whose sampling fields are numbers or null.

    ConfigError for a field that would change answers here as it does in transformers, and is not used.
    """
    fields = Fields(raw, where)
    for name, most in _SAMPLING.items():
        if fields.has(name):
            above = name in ("top_p", "repetition_penalty")
            value = fields.integer(name, least=-1) if name == "top_k" else None
            if (fields.number(name, above=above) if value is None else value) > most:
                fields.refuse(name, f"must be at most {most:g}, not {shown(raw[name])}")
    if fields.has("do_sample"):
        fields.flag("do_sample", default=True)
    for name, neutral in _UNUSED.items():
        if fields.has(name) and raw[name] not in neutral:
            told = f"is {shown(raw[name])}, which would change answers and is not supported"
            fields.refuse(name, f"{told}; set it to null")
    return fields.token_ids("eos_token_id")


def gguf_generation(metadata: Fields) -> dict[str, Any]:
    """The same fields of a GGUF file's keys; ConfigError for one that is wrong or would change answers and is not used."""
    found: dict[str, Any] = {}
    for key, value in metadata.values.items():
        if not key.startswith(_GGUF):
            continue
        name = key.removeprefix(_GGUF)
        if name in _GGUF_NAMES:
            found[_GGUF_NAMES[name]] = _shortest(value)
        elif name not in _GGUF_WITHOUT_EFFECT and value not in _GGUF_UNUSED.get(name, ()):
            metadata.refuse(key, f"of {shown(value)} would change answers and is not supported")
    check_generation(found, f"{metadata.where}: {_GGUF[:-1]}")
    return found


def _shortest(value: Any) -> Any:
    """A number is stored as float32; the shortest decimal is the one that was meant."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
