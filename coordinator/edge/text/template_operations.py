"""What an operation of a template costs. Owns the operators, methods and filters of which one alone can make something
huge or take very long; pure. Each is paid for, from its arguments, before it is done.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from coordinator.edge.text.template_meter import (
    ENTRY,
    MAX_BITS,
    is_atom,
    size_of,
    too_large,
    weight_of,
)

if TYPE_CHECKING:
    from coordinator.edge.text.template_meter import Meter

    Check = Callable[[Meter, list[Any], Mapping[str, Any]], None]

MAX_WIDTH = 100_000
MAX_DIGITS = 300
MAX_INDENT = 16
SMALL_TEXT = 16 * 1024
"""For what searches a text with regular expressions or prints for people."""
QUICK_CODECS = ("utf-8", "utf8", "ascii", "latin-1")
MAX_SEARCH = 1 << 28
"""Characters compared, where a search looks at each character for each of another text's."""
MAX_FORM = 64 * 1024
"""Characters of what `%` and `format` fill in: it is read one by one."""
MAX_LOOKUPS = 1 << 18
"""Steps of an attribute's path, for all entries of a list together."""
_WIDTHS = re.compile(r"[#0\- +]*(\*|[0-9]*)(?:\.(\*|[0-9]*))?")
_NUMBER = re.compile(r"[0-9]+")


def check_operator(meter: Meter, operator: str, left: Any, right: Any) -> None:
    """Pay for `left operator right`."""
    if isinstance(left, int) and isinstance(right, int):
        _check_integers(operator, left, right)
    elif operator == "*":
        for sized, count in ((left, right), (right, left)):
            if isinstance(count, int):
                meter.spend(size_of(sized) * max(count, 0))
    elif operator == "%":
        if isinstance(left, str | bytes):
            _check_percent(meter, left, right)
    else:
        meter.spend(size_of(left) + size_of(right))


def _check_integers(operator: str, left: int, right: int) -> None:
    bits = left.bit_length() + right.bit_length()
    if operator == "**":
        bits = left.bit_length() * max(right, 1)
    if bits > MAX_BITS:
        raise too_large()


def _check_percent(meter: Meter, form: str | bytes, values: Any) -> None:
    text = form.decode("latin-1") if isinstance(form, bytes) else form
    _check_form(text)
    widths, starred = 0, False
    for found in _directives(text):
        for number in found.groups(default=""):
            starred = starred or number == "*"
            widths += _width(number) if number.isdigit() else 0
    if starred:
        given = values if isinstance(values, tuple) else (values,)
        widths += sum(abs(value) for value in given if isinstance(value, int)) * text.count("*")
    meter.spend(len(text) + widths + text.count("%") * (ENTRY + meter.check(values)))


def _check_form(form: str) -> None:
    if len(form) > MAX_FORM:
        raise too_large()


def _directives(form: str) -> Iterator[re.Match[str]]:
    """Width and precision of each; keys are in brackets, which may be in brackets."""
    start = form.find("%")
    while start >= 0:
        found = _WIDTHS.match(form, _behind_key(form, start + 1))
        assert found is not None
        yield found
        start = form.find("%", found.end() + 1)


def _behind_key(form: str, start: int) -> int:
    depth = 0
    for place in range(start, len(form)):
        depth += {"(": 1, ")": -1}.get(form[place], 0)
        if depth == 0:
            return place + (form[place] == ")")
    return len(form)


def _width(number: str) -> int:
    if len(number) > len(str(MAX_WIDTH)) or int(number) > MAX_WIDTH:
        raise too_large()
    return int(number)


def check_form(meter: Meter, form: str) -> None:
    """Pay for what `str.format` reads."""
    _check_form(form)
    meter.spend(len(form))


def check_field(meter: Meter, value: object, spec: str) -> None:
    """Pay for one field of `str.format`."""
    meter.spend(meter.check(value) + sum(map(_width, _NUMBER.findall(spec))))


def check_method(
    meter: Meter, owner: Any, name: str, args: list[Any], named: Mapping[str, Any]
) -> None:
    """Pay for `owner.name(*args)` of a text, bytes or a number; an iterator in `args` becomes a list."""
    if isinstance(owner, int):
        given = [value for value in (*args, *named.values()) if isinstance(value, int)]
        meter.spend(max(given, default=0) if name == "to_bytes" else 0)
    elif name == "join" and args:
        args[0] = _listed(args[0])
        _pay_join(meter, args[0], owner)
    else:
        meter.spend_on(*(value for value in (*args, *named.values()) if not is_atom(value)))
        own = _METHODS.get(name)
        if own is not None:
            own(meter, [owner, *args], named)
        elif name not in _PREDICATES:
            meter.spend(size_of(owner))


_PREDICATES = frozenset({"startswith", "endswith", "find", "index", "count"})


def _listed(value: Any) -> Any:
    """Iterators are consumed once only: what is counted must be what is used."""
    is_iterator = isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)
    return list(value) if is_iterator and not isinstance(value, list | tuple) else value


def _pay_join(meter: Meter, items: Any, separator: object) -> None:
    count = len(items) if hasattr(items, "__len__") else 0
    meter.spend(meter.check(items) + count * size_of(separator))


def _pay_padding(meter: Meter, args: list[Any], named: Mapping[str, Any]) -> None:
    widths = [value for value in (*args[1:], *named.values()) if isinstance(value, int)]
    meter.spend(max(meter.check(args[0]), *widths, 0))


def _pay_tabs(meter: Meter, args: list[Any], named: Mapping[str, Any]) -> None:
    text = args[0]
    width = max((v for v in (*args[1:], *named.values()) if isinstance(v, int)), default=8)
    tab = b"\t" if isinstance(text, bytes) else "\t"
    meter.spend(len(text) + text.count(tab) * max(width, 1))


def _pay_replace(meter: Meter, args: list[Any], named: Mapping[str, Any]) -> None:
    text, weight = args[0], meter.check(args[0])
    old = named.get("old", args[1] if len(args) > 1 else "")
    new = meter.check(named.get("new", args[2] if len(args) > 2 else ""))
    is_known = isinstance(text, str | bytes) and isinstance(old, type(text))
    meter.spend(weight + (text.count(old) if is_known else weight + 1) * new)


def _pay_pieces(meter: Meter, args: list[Any], named: Mapping[str, Any]) -> None:
    text, separator = args[0], named.get("sep", args[1] if len(args) > 1 else None)
    if isinstance(separator, str | bytes) and separator:
        meter.spend(len(text) + ENTRY * text.count(separator))
        _pay_search(meter, [text, separator], {})
    else:
        meter.spend(len(text) + ENTRY * len(text) // 8)


def _pay_search(meter: Meter, args: list[Any], named: Mapping[str, Any]) -> None:
    """For what looks from the right, or for any of several characters."""
    weight = meter.check(args[0])
    for other in (*args[1:], *named.values()):
        if weight * size_of(other) > MAX_SEARCH:
            raise too_large()
    meter.spend(weight)


def _pay_translation(meter: Meter, args: list[Any], _: Mapping[str, Any]) -> None:
    table = args[1] if len(args) > 1 and isinstance(args[1], Mapping) else {}
    longest = max((size_of(value) for value in table.values()), default=1)
    meter.spend(size_of(args[0]) * max(longest, 1))


def _pay_encoding(meter: Meter, args: list[Any], named: Mapping[str, Any]) -> None:
    """Some codecs take the square of a text's length."""
    codec = named.get("encoding", args[1] if len(args) > 1 else "utf-8")
    if str(codec).lower() not in QUICK_CODECS and size_of(args[0]) > SMALL_TEXT:
        raise too_large()
    meter.spend(2 * size_of(args[0]))


def _pay_twice(meter: Meter, args: list[Any], _: Mapping[str, Any]) -> None:
    meter.spend(2 * size_of(args[0]))


_METHODS: dict[str, Check] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _pay_padding),
    **dict.fromkeys(("split", "rsplit", "splitlines"), _pay_pieces),
    **dict.fromkeys(("strip", "lstrip", "rstrip"), _pay_search),
    **dict.fromkeys(("rfind", "rindex", "rpartition"), _pay_search),
    **dict.fromkeys(("encode", "decode"), _pay_encoding),
    "hex": _pay_twice,
    "expandtabs": _pay_tabs,
    "replace": _pay_replace,
    "translate": _pay_translation,
}


def _free(meter: Meter, _args: list[Any], _: Mapping[str, Any]) -> None:
    meter.tick()


def _pay_written(meter: Meter, args: list[Any], named: Mapping[str, Any]) -> None:
    """Everything that is given is written, or compared."""
    args[0] = _listed(args[0])
    meter.spend_on(*args, *named.values())


def _pay_looked_up(
    place: int | None, own: Check
) -> Callable[[Meter, list[Any], Mapping[str, Any]], None]:
    """For what asks each entry for an attribute, whose path may have many steps and is the argument at `place`."""

    def check(meter: Meter, args: list[Any], named: Mapping[str, Any]) -> None:
        args[0] = _listed(args[0])
        given = args[place] if place is not None and len(args) > place else None
        path = named.get("attribute", given)
        steps = 1 + path.count(".") + path.count(",") if isinstance(path, str) else 0
        entries = len(args[0]) if hasattr(args[0], "__len__") else 0
        if steps * entries > MAX_LOOKUPS:
            raise too_large()
        own(meter, args, named)

    return check


def _pay_copy(meter: Meter, args: list[Any], _: Mapping[str, Any]) -> None:
    args[0] = _listed(args[0])
    meter.spend(size_of(args[0]) * (ENTRY if isinstance(args[0], str) else 1))


def _pay_small(meter: Meter, args: list[Any], named: Mapping[str, Any]) -> None:
    for value in (*args, *named.values()):
        weight_of(value, SMALL_TEXT)
        if isinstance(value, str) and len(value) > SMALL_TEXT:
            raise too_large()
    _check_widths(args, named, MAX_WIDTH)
    meter.tick()


def _check_widths(args: list[Any], named: Mapping[str, Any], most: int) -> None:
    for value in (*args[1:], *named.values()):
        if isinstance(value, int) and abs(value) > most:
            raise too_large()


def _pay_indent(meter: Meter, args: list[Any], named: Mapping[str, Any]) -> None:
    width = named.get("width", args[1] if len(args) > 1 else 4)
    step = len(width) if isinstance(width, str) else width if isinstance(width, int) else 0
    lines = args[0].count("\n") + 1 if isinstance(args[0], str) else 1
    meter.spend(meter.check(args[0]) + lines * max(step, 0))


def _pay_joined(meter: Meter, args: list[Any], named: Mapping[str, Any]) -> None:
    args[0] = _listed(args[0])
    _pay_join(meter, args[0], named.get("d", args[1] if len(args) > 1 else ""))


def _pay_rows(meter: Meter, args: list[Any], named: Mapping[str, Any]) -> None:
    _check_widths(args, named, MAX_WIDTH)
    _pay_padding(meter, [0, *args[1:]], named)
    _pay_copy(meter, args, named)


def _pay_rounding(meter: Meter, args: list[Any], named: Mapping[str, Any]) -> None:
    _check_widths(args, named, MAX_DIGITS)
    meter.tick()


def _pay_sum(meter: Meter, args: list[Any], named: Mapping[str, Any]) -> None:
    """Lists are added one after the other, and copied each time."""
    args[0] = _listed(args[0])
    start = named.get("start", args[2] if len(args) > 2 else 0)
    times = 1 if isinstance(start, int | float) else size_of(args[0]) // ENTRY + 1
    meter.spend(meter.check(args[0]) * times)


def _pay_format(meter: Meter, args: list[Any], named: Mapping[str, Any]) -> None:
    if not isinstance(args[0], str):
        meter.spend_on(args[0])
        args[0] = str(args[0])
    _check_percent(meter, args[0], dict(named) if named else tuple(args[1:]))


def _pay_json(meter: Meter, args: list[Any], named: Mapping[str, Any]) -> None:
    indent = named.get("indent", args[2] if len(args) > 2 else None)
    step = len(indent) if isinstance(indent, str) else indent if isinstance(indent, int) else 0
    others = [value for value in (*args[1:], *named.values()) if not is_atom(value)]
    if step > MAX_INDENT or weight_of(others, SMALL_TEXT) > ENTRY * 8:
        raise too_large()
    meter.spend_on(args[0], indent=max(step, 0))


def _pay_escaped(meter: Meter, args: list[Any], _: Mapping[str, Any]) -> None:
    meter.spend(2 * meter.check(args[0]))


_FILTERS: dict[str, Check] = {
    **dict.fromkeys(("first", "last", "length", "count", "default", "d"), _free),
    **dict.fromkeys(("select", "reject", "attr", "items", "random", "abs", "int", "float"), _free),
    **dict.fromkeys(("selectattr", "rejectattr"), _pay_looked_up(1, _pay_copy)),
    "groupby": _pay_looked_up(1, _pay_written),
    **dict.fromkeys(("unique", "min", "max"), _pay_looked_up(2, _pay_written)),
    "map": _pay_looked_up(None, _pay_copy),
    "sort": _pay_looked_up(3, _pay_written),
    **dict.fromkeys(("list", "reverse"), _pay_copy),
    **dict.fromkeys(("urlize", "striptags", "wordwrap", "wordcount"), _pay_small),
    **dict.fromkeys(("pprint", "xmlattr", "title", "filesizeformat"), _pay_small),
    **dict.fromkeys(("escape", "e", "forceescape", "urlencode"), _pay_escaped),
    **dict.fromkeys(("batch", "slice"), _pay_rows),
    "center": _pay_padding,
    "trim": _pay_search,
    "replace": _pay_replace,
    "indent": _pay_indent,
    "join": _pay_looked_up(2, _pay_joined),
    "round": _pay_rounding,
    "sum": _pay_looked_up(1, _pay_sum),
    "format": _pay_format,
    "tojson": _pay_json,
}


def check_filter(meter: Meter, name: str, args: list[Any], named: Mapping[str, Any]) -> None:
    """Pay for a filter; `args` begins with what it is applied to, and an iterator in it becomes a list."""
    _FILTERS.get(name, _pay_written)(meter, args, named)
