"""llguidance behind the seam of grammars. Owns how a constraint is spelled in its Lark, and what it may cost.

Grammars are compiled lazily, token masks made as they are needed, both with fuel: what runs out of it fails by itself.
A mask says all tokens that the grammar lets through, whichever way a text is cut into tokens: no tokenizer is asked.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper, regex_to_lark
from llguidance.gbnf_to_lark import gbnf_to_lark

from engine.grammar.schemas import prepared
from protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from engine.grammar.guide import Bits
    from engine.grammar.vocabulary import GrammarVocabulary

WHITESPACE = r"[ \n\t]{0,20}"
"""Between two words of JSON: room to write it prettily, none to write nothing for ever."""
_HEADER = '%llguidance {"no_forcing": true}\n'
STEP_FUEL, STEP_ITEMS = 100_000, 25_000
"""Of the lexer and of the parser, for one mask: a few milliseconds."""
_GRAMMAR_BYTES, _BYTES_PER_CHARACTER = 64 * 1024, 64
"""What a compiled grammar takes, about: measured on 100 schemas, 110 KB each of 1.3 KB."""
_UNIMPLEMENTED = re.compile(r"Unimplemented keys: (\[.*?\])")
_WRONG_PATTERN = re.compile(r"regex parse error:\n {4}(.*)\n.*\nerror: (.*)")
_CIRCLE = re.compile(r"circular references with sibling keys.*json-schema:///(\S+)")
_PLACE = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?")
"""Where in our own grammar, which no client has written."""


class LlguidanceGrammar:
    """A compiled grammar: satisfies engine.grammar.guide.CompiledGrammar.

    Copies of the library's matcher share what their lexer has learned, and what it may learn is bounded: a grammar that
    served many answers would fail the next. Then it is compiled once more.
    """

    def __init__(self, compile_it: Callable[[], LLMatcher], num_bytes: int) -> None:
        self._compile = compile_it
        self._prototype = compile_it()
        self.num_bytes = num_bytes

    @property
    def error(self) -> str:
        """Why there is no such grammar, "" where there is one."""
        return self._prototype.get_error() if self._prototype.is_error() else ""

    def matcher(self) -> LlguidanceMatcher:
        """See CompiledGrammar."""
        return LlguidanceMatcher(self)

    def begin(self) -> LLMatcher:
        """The library's matcher at an answer's beginning."""
        return self._prototype.deep_copy()

    def renew(self) -> None:
        """Forget what was learned."""
        self._prototype = self._compile()


class LlguidanceMatcher:
    """Satisfies engine.grammar.guide.Matcher."""

    def __init__(self, grammar: LlguidanceGrammar) -> None:
        self._grammar = grammar
        self._matcher = grammar.begin()
        self._token_ids: list[int] = []

    def accept(self, token_id: int) -> bool:
        """See Matcher."""
        self._token_ids.append(token_id)
        return self._matcher.consume_token(token_id) or self._is_well_again()

    def permits(self, token_id: int) -> bool:
        """See Matcher. Out of fuel it does not say so."""
        return self._matcher.validate_tokens([token_id]) == 1

    def fill(self, bits: Bits) -> None:
        """See Matcher. Out of fuel, nothing is allowed."""
        self._matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        if self._matcher.is_error() and self._is_well_again():
            self._matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        if self._matcher.is_error():
            bits[:] = 0

    def _is_well_again(self) -> bool:
        """Whether what failed does not fail with nothing learned."""
        self._grammar.renew()
        self._matcher = self._grammar.begin()
        return all(map(self._matcher.consume_token, self._token_ids))

    def may_end(self) -> bool:
        """See Matcher."""
        return self._matcher.is_accepting()


class LlguidanceCompiler:
    """Of one vocabulary; a step may take `patience` times STEP_FUEL."""

    def __init__(self, vocabulary: GrammarVocabulary, patience: int) -> None:
        wrapper = TokenizerWrapper(_Tokens(vocabulary))
        ends = list(vocabulary.eos_token_ids) or None
        self._tokenizer = LLTokenizer(wrapper, n_vocab=vocabulary.num_rows, eos_token=ends)
        self._limits = LLParserLimits(
            step_lexer_fuel=patience * STEP_FUEL,
            step_max_items=patience * STEP_ITEMS,
            max_lexer_states=20_000,
            verbose_errors=False,
        )

    def compile(self, lark: str) -> LlguidanceGrammar:
        """Raises InvalidRequest, which names what cannot be honoured."""

        def compile_it() -> LLMatcher:
            return LLMatcher(self._tokenizer, lark, log_level=0, limits=self._limits)

        grammar = LlguidanceGrammar(compile_it, _GRAMMAR_BYTES + _BYTES_PER_CHARACTER * len(lark))
        if grammar.error:
            raise InvalidRequest(_reason(grammar.error))
        return grammar


class _Tokens:
    """A vocabulary as llguidance reads it; tokenizes byte by byte or better, when it is asked to."""

    def __init__(self, vocabulary: GrammarVocabulary) -> None:
        names = {token_id: name for name, token_id in vocabulary.control_ids.items()}
        silent = [i for i, spelled in enumerate(vocabulary.spelled) if not spelled]
        self.tokens = list(vocabulary.spelled)
        for token_id in silent:
            self.tokens[token_id] = names.get(token_id, f"<|row {token_id}|>").encode()
        self.special_token_ids = silent
        self.eos_token_id = vocabulary.eos_token_ids[0] if vocabulary.eos_token_ids else 0
        self.bos_token_id = None
        self._ids = {spelled: i for i, spelled in enumerate(vocabulary.spelled) if spelled}
        self._longest = max(map(len, self._ids), default=1)

    def __call__(self, text: bytes | str) -> list[int]:
        said = text.encode() if isinstance(text, str) else text
        token_ids: list[int] = []
        while said:
            sizes = range(min(self._longest, len(said)), 0, -1)
            size = next((size for size in sizes if said[:size] in self._ids), 1)
            token_ids += [self._ids[said[:size]]] if said[:size] in self._ids else []
            said = said[size:]
        return token_ids


def _reason(error: str) -> str:
    """An error of the library as a client may read it."""
    if found := _UNIMPLEMENTED.search(error):
        return "unsupported keywords in the schema: " + ", ".join(json.loads(found[1]))
    if found := _CIRCLE.search(error):
        return f"unsupported in the schema: $ref {found[1]!r} within itself, beside other keywords"
    if found := _WRONG_PATTERN.search(error):
        return f"the pattern {found[1]!r} cannot be used: {found[2]}"[:300]
    for theirs, ours in _SAID_PLAINLY.items():
        if theirs in error:
            return ours
    first = next((line.strip() for line in error.splitlines() if line.strip()), "no reason given")
    return _PLACE.sub("", first)[:300]


_SAID_PLAINLY = {
    "oneOf constraints are not supported": (
        "unsupported keyword in the schema: oneOf, unless its branches exclude each other"
    ),
    "intersection stack level": "too many schemas are put together by allOf and $ref",
    "egex is empty": "no string keeps to its pattern, format, minLength and maxLength together",
    "incompatible types": (
        "no value keeps to type, const and enum of all that is put together by allOf and $ref"
    ),
    "required item is unsat": "minItems is more than prefixItems and items allow",
    "panic": "it is too large to be compiled",
}


# ---- how constraints are spelled


def json_rule(schema: object) -> str:
    """JSON that the schema allows, as a term of Lark. Raises InvalidRequest."""
    changed = prepared(schema)
    if changed is False:
        raise InvalidRequest("the schema false allows no value")
    options = {"x-guidance": {"whitespace_pattern": WHITESPACE}}
    body: dict[str, Any] = {} if changed is True else changed
    return "%json " + json.dumps(body | options)


def regex_rule(pattern: str) -> str:
    """What the whole pattern matches."""
    return f"/{regex_to_lark(pattern, use_ascii='')}/"


def choice_rule(choices: Sequence[str]) -> str:
    """One of the texts."""
    return " | ".join(text_term(choice) for choice in choices)


def text_term(text: str) -> str:
    """Exactly this text."""
    return json.dumps(text, ensure_ascii=False)


def start(rule: str) -> str:
    """A whole grammar of one rule."""
    return f"{_HEADER}start: {rule}\n"


def grammar_files(first: str, others: Mapping[str, str]) -> str:
    """One grammar that calls others by their names, `@name`."""
    if not others:
        return first
    own = [{"name": name, "lark_grammar": text} for name, text in others.items()]
    return json.dumps({"grammars": [{"name": "answer", "lark_grammar": first}, *own]})


def own_grammar(text: str) -> str:
    """A client's grammar, in Lark or GBNF. Raises InvalidRequest for options, which are not a client's."""
    if "::=" in text:
        return _HEADER + _of_gbnf(text)
    if "%llguidance" in text:
        raise InvalidRequest("%llguidance is not supported in a grammar")
    return _HEADER + text


def _of_gbnf(text: str) -> str:
    try:
        lark: str = gbnf_to_lark(text)
    except Exception as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise InvalidRequest(f"it is not GBNF: {first[:300]}") from error
    return lark
