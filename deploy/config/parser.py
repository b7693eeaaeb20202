"""Parsers of command lines. Owns how a wrong word is answered: one sentence, ConfigError, and what may have been meant."""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from deploy.config.spelling import did_you_mean, nearest
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from deploy.config.option import Option

_Verbs = argparse._SubParsersAction  # noqa: SLF001 - argparse shows its actions in no other way


class Parser(argparse.ArgumentParser):
    """Errors are ConfigErrors, so that they look like every other one. Words that follow no rule are unknown."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting."""
        raise ConfigError(f"{message.removeprefix('argument ')}; see `{self.prog} --help`")

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Everything; ConfigError for the first word that means nothing here."""
        said = sys.argv[1:] if args is None else list(args)
        try:
            found, unknown = self.parse_known_args(said, namespace)
        except ConfigError:
            self._refuse_misspelt(said)  # or what is missing hides what was said in its place
            raise
        if unknown:
            raise ConfigError(self.explain_unknown(unknown[0]))
        return found

    def _refuse_misspelt(self, words: Sequence[str]) -> None:
        known = self._options()
        for word in itertools.takewhile(lambda word: word != "--", words):
            name = plain(word).partition("=")[0]
            if name.startswith("--") and not any(option.startswith(name) for option in known):
                raise ConfigError(self.explain_unknown(word)) from None

    def explain_unknown(self, word: str) -> str:
        """One line about a word that no rule took."""
        if not word.startswith("-"):
            return f"unexpected argument {word!r}; see `{self.prog} --help`"
        name = word.partition("=")[0]
        options = self._options()
        if name in options:
            return f"{name} belongs to what is missing before it; see `{self.prog} --help`"
        words = {f"--{word.partition('=')[0].partition(':')[0]}": word for word in self._words()}
        near = nearest(name, (*words, *options))
        meant = f"; did you mean {words.get(near, near)!r}?" if near else ""
        return f"unknown option {name}{meant}; see `{self.prog} --help`"

    def _options(self) -> list[str]:
        """Its own, and those of its verbs."""
        verbs = [action for action in self._actions if isinstance(action, _Verbs)]
        below = [parser for action in verbs for parser in action.choices.values()]
        return re.findall(r"--[a-z][\w-]*", "".join(it.format_help() for it in (self, *below)))

    def _words(self) -> list[str]:
        """`goal:SHARE` and the like, which are said without dashes."""
        shown = [it.metavar for it in self._actions if not it.option_strings]
        return re.findall(r"[a-z][^|{}, ]*", " ".join(it for it in shown if isinstance(it, str)))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """A word that is none of those which may be said."""
        if action.choices is None or value in action.choices:
            return
        names = [str(choice) for choice in action.choices]
        near = did_you_mean(str(value), names)
        raise argparse.ArgumentError(action, f"{value!r} is not one of {', '.join(names)}{near}")


def plain(argument: str) -> str:
    """`--max_model_len=8` → `--max-model-len=8`: underscores in an option's name are dashes."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def typed(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """A grammar of `deploy.config.values` as argparse takes it: its sentence is the one that is shown."""

    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def new_file(text: str) -> Path:
    """Where something will be written; refused before the work, not after it."""
    path = Path(text).expanduser()
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder; name a file in it")
    return path


def add_option(group: argparse._ArgumentGroup, option: Option) -> None:
    """One of the table's. What it says is kept as text: where values come together, they are parsed."""
    names = [f"--{option.name}", *(f"--{alias}" for alias in option.aliases)]
    shown = option.help
    if option.default not in (None, (), ""):
        shown += f" (default: {_spelled(option)})"
    told: dict[str, Any] = {"dest": f"option:{option.name}", "help": shown.replace("%", "%%")}
    if option.kind == "switch":
        group.add_argument(*names, **told, action=argparse.BooleanOptionalAction, default=None)
        return
    if option.kind == "several":
        told |= {"action": "extend", "nargs": "+"}
    metavar = f"{{{','.join(option.choices)}}}" if option.choices else option.metavar
    group.add_argument(*names, **told, metavar=metavar)


def _spelled(option: Option) -> str:
    value = option.default
    if option.kind == "switch":
        return "yes" if value else "no"
    return " ".join(value) if isinstance(value, tuple) else f"{value}"
