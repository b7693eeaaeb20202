"""YAML that people wrote. Owns that a key is there once, that what is wrong is told by its place (the text may hold secrets), and
which numbers are texts to whoever wants what was written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from yaml.nodes import MappingNode, Node

MERGE = "<<"
MOST_NODES = 100_000
NUMBERS = tuple(f"tag:yaml.org,2002:{name}" for name in ("int", "float", "timestamp"))


class _Once(yaml.SafeLoader):
    """The last of two values would count, and the first be silently forgotten."""

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        """As it stands, before anything is merged into it."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != MERGE:
                if key.value in seen:
                    line = key.start_mark.line + 1
                    raise ValueError(f"line {line}: {key.value[:80]!r} is there twice")
                seen.add(key.value)
        return node


class _AsWritten(_Once):
    """YAML reads `0123` as 83, `1.10` as 1.1 and `5:00` as 300: where a key or a name may stand that is another one."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:  # noqa: FBT001, FBT002 - as it is called
        """What would be spelled otherwise stays text."""
        value = super().construct_object(node, deep=deep)
        is_number = isinstance(node, yaml.ScalarNode) and node.tag in NUMBERS
        return node.value if is_number and str(value) != node.value else value


def read_document(text: str | bytes, *, as_written: bool = False) -> object:
    """What it says. With `as_written` a number or date that is not written as Python would is text. ValueError tells the place
    and what is wrong there, and quotes nothing but the name of a key."""
    try:
        loader = (_AsWritten if as_written else _Once)(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_size(node, {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        is_fixed = isinstance(error, yaml.scanner.ScannerError | yaml.parser.ParserError)
        why = error.problem if is_fixed and error.problem else "this is not to be read"
        raise ValueError(place + why) from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ValueError("it has characters that no text has") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _check_size(node: Node, sizes: dict[int, int]) -> int:
    """How many values there are when every anchor's is written out; ValueError where that is more than anybody writes."""
    known = sizes.get(id(node))
    if known is not None:
        return known
    sizes[id(node)] = MOST_NODES  # of one that has itself in it
    size = 1
    if isinstance(node, yaml.MappingNode):
        size += sum(_check_size(it, sizes) for pair in node.value for it in pair)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_check_size(it, sizes) for it in node.value)
    if size > MOST_NODES:
        line = node.start_mark.line + 1
        raise ValueError(f"line {line}: what it repeats by its anchors is too much")
    sizes[id(node)] = size
    return size
