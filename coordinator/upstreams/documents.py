"""YAML that people wrote. Owns that a key is there once, and that what is wrong is told by its place: the text may hold secrets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from yaml.nodes import MappingNode

MERGE = "<<"


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


def read_document(text: str | bytes) -> object:
    """What it says. ValueError tells the place and what is wrong there, and quotes nothing but the name of a key."""
    try:
        loader = _Once(text)
        try:
            return loader.get_single_data()
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
