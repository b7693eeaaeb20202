"""Who wrote a control token: the template or a message. Owns the marks that tell, and the search for tokens in a text.

A second copy of the template writes each character of its own control tokens, and each of their
brackets and bars, as a lone surrogate: one that no JSON text can hold. What a message brought passes
through as it is, whatever the template does to it, so after rendering every character says whose it is:

    template wrote   <|im_start|>user<|sep|>      a message brought   a<|sep|>b
    marked           ############user#######                          a<|sep|>b      only # is control
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from jinja2 import nodes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

ROLES = ("system", "developer", "user", "assistant", "tool")
FIRST_MARK, LAST_MARK = 0xD800, 0xDFFF
MARKS = re.compile("[\ud800-\udfff]+")
WORDS = re.compile(r"[^\W\ud800-\udfff]+")
WRITING_FILTERS = frozenset({"join", "default", "d", "format", "replace"})
MOST_RUNS = 1024
WRITING_CALLS = frozenset({"namespace", "dict"})
WRITING_METHODS = {"get": 1, "pop": 1, "replace": 1, "format": 0}
"""From which of its arguments on a method gives back what it was given."""


class ControlTokens:
    """The names that mean something to the model when a template writes them."""

    def __init__(self, names: Iterable[str], loose: Iterable[str] = ()) -> None:
        """`loose` are those of `names` that answers show as text, such as `</think>`."""
        self.names = frozenset(name for name in names if name.strip())
        self.loose = frozenset(loose) & self.names
        self._longest_first = sorted(self.names, key=len, reverse=True)
        characters = sorted({character for name in self.names for character in name})
        marks = map(chr, range(FIRST_MARK, LAST_MARK + 1))
        self._mark = dict(zip(characters, marks, strict=False))
        self._meaning = {mark: character for character, mark in self._mark.items()}
        self._edges = _any_of({edge for name in self.names for edge in (name[0], name[-1])})
        self._any = _any_name(self._longest_first)
        self._runs: dict[str, str] = {}
        self._cores = frozenset(word for name in self.names for word in WORDS.findall(name))

    def may_be_in(self, texts: Iterable[str]) -> bool:
        """Whether a template could make a control token of these: quick, and true too often."""
        return any(self._edges.search(text) or text in self._cores for text in texts)

    def found(
        self, text: str, accepts: Callable[[int, int], bool] | None = None
    ) -> Iterator[tuple[int, int]]:
        """Start and end of each accepted token, the first and longest first, as a tokenizer finds them."""
        match = self._any.search(text)
        while match is not None:
            start, end = match.span()
            if accepts is not None and not accepts(start, end):
                end = self._shorter(text, start, end, accepts)
            if end > start:
                yield start, end
            match = self._any.search(text, max(end, start + 1))

    def count_in(self, text: str) -> int:
        """How many tokens a text spells."""
        return sum(1 for _ in self.found(text))

    def _shorter(self, text: str, start: int, end: int, accepts: Callable[[int, int], bool]) -> int:
        """Where the longest accepted token ends that begins at `start` and ends before `end`; `start` for none."""
        for name in self._longest_first:
            stop = start + len(name)
            if stop < end and text.startswith(name, start) and accepts(start, stop):
                return stop
        return start

    def marked(self, text: str) -> str:
        """What a template wrote, marked: its tokens whole, and the punctuation that tokens are made of."""
        characters = [
            self._mark.get(character, character)
            if not character.isalnum() and not character.isspace()
            else character
            for character in text
        ]
        for start, end in self.found(text):
            characters[start:end] = [self._mark.get(it, it) for it in text[start:end]]
        return "".join(characters)

    def plain(self, marked: str) -> str:
        """The text without marks, as long as before."""
        return MARKS.sub(self._plain_run, marked)

    def _plain_run(self, run: re.Match[str]) -> str:
        """Runs are few: the template wrote them, and messages have no marks."""
        found = run[0]
        known = self._runs.get(found)
        if known is None:
            known = "".join(self._meaning.get(mark, mark) for mark in found)
            if len(self._runs) < MOST_RUNS:
                self._runs[found] = known
        return known

    def written(
        self, text: str, marked: str, brought: Collection[str], exempt: Collection[str] = ()
    ) -> list[tuple[int, int]] | None:
        """Where in `text`, which is `marked` without marks, the template wrote control tokens; None if there are no
        others. `exempt` ones count wherever they stand.

        A template may put a token together around a word (`'<|' + role + '|>'`): not around one that
        a message `brought`, unless it is a role's name.
        """

        def is_ours(start: int, end: int) -> bool:
            if text[start:end] in exempt:
                return True
            own = marked[start:end]
            if not MARKS.search(own):
                return False
            rest = MARKS.sub(" ", own)
            if any(not (character.isalnum() or character.isspace()) for character in rest):
                return False
            return all(word in ROLES or word not in brought for word in rest.split())

        if all(is_ours(start, end) for start, end in self.found(text)):
            return None
        return list(self.found(text, is_ours))


def _any_of(characters: Collection[str]) -> re.Pattern[str]:
    return re.compile(f"[{re.escape(''.join(sorted(characters)))}]" if characters else r"(?!)")


def _any_name(longest_first: Iterable[str]) -> re.Pattern[str]:
    """Finds the first name, and the longest there; hardly slower for many names, as most of them begin alike."""
    rests: dict[str, list[str]] = {}
    for name in longest_first:
        rests.setdefault(name[:2], []).append(re.escape(name[2:]))
    starts = sorted(rests, key=len, reverse=True)
    choices = [f"{re.escape(start)}(?:{'|'.join(rests[start])})" for start in starts]
    return re.compile("|".join(choices) or r"(?!)")


def mark_template(template: nodes.Template, tokens: ControlTokens) -> None:
    """Mark in place what `template` writes; what it only compares or searches for stays as it is."""
    macros = {macro.name for macro in template.find_all(nodes.Macro)} | WRITING_CALLS
    _mark(template, tokens, macros)


def _mark(node: nodes.Node, tokens: ControlTokens, macros: Collection[str]) -> None:
    if isinstance(node, nodes.TemplateData):
        node.data = tokens.marked(node.data)
    elif isinstance(node, nodes.Const):
        if isinstance(node.value, str):
            node.value = tokens.marked(node.value)
    else:
        for child in _written_by(node, macros):
            _mark(child, tokens, macros)


def _written_by(node: nodes.Node, macros: Collection[str]) -> Iterator[nodes.Node]:
    """Children whose value may become output."""
    if isinstance(node, nodes.Compare | nodes.Test):
        return
    if isinstance(node, nodes.If | nodes.CondExpr):
        yield from (child for child in node.iter_child_nodes(exclude=("test",)))
    elif isinstance(node, nodes.Getitem | nodes.Getattr):
        yield node.node
    elif isinstance(node, nodes.Pair):
        yield node.value
    elif isinstance(node, nodes.Call):
        yield node.node
        if isinstance(node.node, nodes.Name) and node.node.name in macros:
            yield from node.args
            yield from (keyword.value for keyword in node.kwargs)
        elif isinstance(node.node, nodes.Getattr) and node.node.attr in WRITING_METHODS:
            yield from node.args[WRITING_METHODS[node.node.attr] :]
    elif isinstance(node, nodes.Filter):
        if node.node is not None:
            yield node.node
        yield from _written_by_filter(node)
    else:
        yield from node.iter_child_nodes()


def _written_by_filter(node: nodes.Filter) -> Iterator[nodes.Node]:
    """The arguments of a filter that come out again: of `replace` the second alone."""
    if node.name in WRITING_FILTERS:
        yield from node.args[1:] if node.name == "replace" else node.args
