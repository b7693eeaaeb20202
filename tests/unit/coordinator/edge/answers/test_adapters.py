"""Names of adapters: whose each is, what it means, and when its content may go."""

from __future__ import annotations

import asyncio

import pytest

from coordinator.edge.answers.adapters import AdapterBook, KeptContents
from protocol.clock import ManualClock
from protocol.errors import ConfigError, InvalidRequest, ModelNotFound

NAMES = {"red": "red", "red-chat": "red", "blue": "blue", "plain": "plain"}


class Kept:
    """One model's contents: a path is its content."""

    def __init__(self) -> None:
        self.forgotten: list[str] = []
        self.used: set[str] = set()
        self.contents = KeptContents(self.prepare, self.forgotten.append, lambda: self.used)

    def prepare(self, path: str) -> str:
        if path == "bad":
            raise ConfigError("adapter_config.json: there is none")
        return f"digest of {path}"


class Rig:
    def __init__(self, *models: str) -> None:
        self.clock, self.kept = ManualClock(), {name: Kept() for name in models}
        contents = {name: kept.contents for name, kept in self.kept.items()}
        self.book = AdapterBook(contents, self.clock, NAMES)

    def load(self, name: str, path: str, base: str | None = None, *, in_place: bool = False) -> str:
        asyncio.run(self.book.load(name, path, base, in_place=in_place))
        found = self.book.find(name)
        assert found is not None
        return found.model


def test_an_adapter_is_the_model_s_that_was_named_and_the_only_one_s_where_none_was() -> None:
    assert Rig("red").load("sql", "/a") == "red"
    rig = Rig("red", "blue")
    assert rig.load("sql", "/a", "blue") == "blue"
    assert rig.load("poems", "/a", "red-chat") == "red"
    assert rig.load("sql", "/b", in_place=True) == "blue"


@pytest.mark.parametrize("base", [None, "plain", "nobody"])
def test_which_model_it_is_for_must_be_said_and_known(base: str | None) -> None:
    rig = Rig("red", "blue")
    with pytest.raises(InvalidRequest, match="red, blue") as caught:
        rig.load("sql", "/a", base)
    assert caught.value.param == "base_model_name"
    assert not rig.book.names


@pytest.mark.parametrize("name", ["red-chat", "plain", "taken"])
def test_a_name_is_one_thing_s(name: str) -> None:
    rig = Rig("red", "blue")
    rig.load("taken", "/a", "red")
    with pytest.raises(InvalidRequest) as caught:
        rig.load(name, "/b", "blue")
    assert caught.value.param == "lora_name"


def test_what_cannot_be_served_changes_nothing() -> None:
    rig = Rig("red")
    rig.load("sql", "/a")
    with pytest.raises(InvalidRequest, match="adapter_config"):
        rig.load("sql", "bad", in_place=True)
    assert rig.book.find("sql").ref.digest == "digest of /a"  # type: ignore[union-attr]
    with pytest.raises(ModelNotFound):
        asyncio.run(rig.book.unload("nobody"))


def test_a_content_goes_when_nobody_can_need_it_any_more_and_each_model_s_by_itself() -> None:
    rig = Rig("red", "blue")
    rig.load("one", "/a", "red")
    rig.load("two", "/a", "blue")
    rig.load("one", "/b", in_place=True)
    rig.kept["red"].used = {"digest of /a"}
    rig.clock.advance(61.0)
    rig.load("one", "/c", in_place=True)
    assert rig.kept["red"].forgotten == []
    rig.kept["red"].used = set()
    rig.clock.advance(61.0)
    rig.load("one", "/c", in_place=True)
    assert sorted(rig.kept["red"].forgotten) == ["digest of /a", "digest of /b"]
    assert rig.kept["blue"].forgotten == []


def test_operators_see_who_has_an_adapter_in_memory() -> None:
    rig = Rig("red")
    rig.load("one", "/a")
    rig.load("two", "/b")
    workers = [
        {"id": "decode-0", "adapters": ["digest of /a", "digest of something old"]},
        {"id": "prefill-0", "adapters": ["digest of /a"]},
    ]
    view = rig.book.view(workers)
    assert view["registered"] == 2
    (one,) = view["resident"]
    assert (one["name"], one["workers"]) == ("one", ["decode-0", "prefill-0"])
