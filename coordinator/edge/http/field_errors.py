"""What a client is told of a field that is wrong. Owns the sentence, which names field and limit, and OpenAI's code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from pydantic_core import PydanticCustomError

from protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

UNSUPPORTED_CODE = "unsupported_parameter"
WRONG_TYPE = "invalid_type"
INVALID = "invalid_value"
MISSING = "missing_required_parameter"
LONG_TEXT, EMPTY_TEXT = "string_above_max_length", "empty_string"
LONG_ARRAY, EMPTY_ARRAY = "array_above_max_length", "empty_array"
LARGE_OBJECT = "object_above_max_properties"
TYPES = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
BOUNDS = {
    "greater_than_equal": ("at least", "ge", "below_min_value"),
    "greater_than": ("more than", "gt", "below_min_value"),
    "less_than_equal": ("at most", "le", "above_max_value"),
    "less_than": ("less than", "lt", "above_max_value"),
}
SENTENCES = {
    "missing": ("is required", MISSING),
    "string_too_long": ("must have at most {max_length} characters", LONG_TEXT),
    "string_too_short": ("cannot be empty", EMPTY_TEXT),
    "literal_error": ("must be {expected}", INVALID),
    "finite_number": ("must be a finite number", INVALID),
    "int_parsing_size": ("must be an integer of 64 bits", INVALID),
}
MAX_TOLD_NUMBER = 10**19


def wrong(code: str, predicate: str) -> NoReturn:
    """Refuse a field from within a validator; `predicate` follows the field's name."""
    raise PydanticCustomError(code, "{predicate}", {"predicate": predicate})


def most_telling(entries: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Of the errors of a union's members the one that got furthest: a limit rather than a wrong type."""
    return max(entries, key=lambda entry: (len(entry["loc"]), entry["type"] not in TYPES))


def refusal(entry: Mapping[str, Any], path: str, others: Iterable[str] = ()) -> InvalidRequest:
    """One of pydantic's errors, about the field at `path`; `others` are kinds of errors that other types met there."""
    if entry["type"] in TYPES:
        wanted = dict.fromkeys(TYPES[kind] for kind in (entry["type"], *others) if kind in TYPES)
        return InvalidRequest(f"{path} must be {' or '.join(wanted)}", path, WRONG_TYPE)
    predicate, code = _told(entry["type"], entry.get("ctx") or {}, entry.get("input"))
    predicate = predicate or str(entry["msg"]).removeprefix("Value error, ")
    return InvalidRequest(f"{path} {predicate}", path, code)


def _told(kind: str, context: Mapping[str, Any], value: object) -> tuple[str, str]:
    if kind in BOUNDS:
        return _out_of_bounds(kind, context, value)
    if kind in ("too_long", "too_short"):
        return _wrong_length(kind, context)
    if kind in SENTENCES:
        sentence, code = SENTENCES[kind]
        return sentence.format_map(context), code
    return str(context.get("predicate", "")), kind if "predicate" in context else INVALID


def _out_of_bounds(kind: str, context: Mapping[str, Any], value: object) -> tuple[str, str]:
    words, name, ending = BOUNDS[kind]
    code = f"{'integer' if isinstance(value, int) else 'decimal'}_{ending}"
    is_short = isinstance(value, int | float) and abs(value) < MAX_TOLD_NUMBER
    told = f", but is {value}" if is_short else ""
    limit = context[name]
    shown = int(limit) if limit == int(limit) else limit
    return f"must be {words} {shown}{told}", code


def _wrong_length(kind: str, context: Mapping[str, Any]) -> tuple[str, str]:
    if kind == "too_short":
        return "cannot be empty", EMPTY_ARRAY
    found = context.get("actual_length")
    told = f", but has {found}" if found is not None else ""
    is_object = context["field_type"] == "Dictionary"
    return f"must have at most {context['max_length']} entries{told}", (
        LARGE_OBJECT if is_object else LONG_ARRAY
    )
