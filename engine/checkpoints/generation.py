"""What a generation_config.json may say. Owns which of its fields are used and which are not; torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
}
"""Fields that change what transformers generates and are not used here, and which of their values ask for nothing.
How long an answer may be, and how many there are, is the client's to say."""
GENERATION_FIELDS = frozenset({*_SAMPLING, *_UNUSED})


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
    for name, neutral in _UNUSED.items():
        if fields.has(name) and raw[name] not in neutral:
            told = f"is {shown(raw[name])}, which would change answers and is not supported"
            fields.refuse(name, f"{told}; set it to null")
    return fields.token_ids("eos_token_id")
