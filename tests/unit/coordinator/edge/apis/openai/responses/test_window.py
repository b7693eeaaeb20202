"""What is kept of responses is bounded, in number and in bytes, and the sum is true."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.edge.apis.openai.responses.window import (
    KeptResponse,
    ResponseNotFound,
    ResponseWindow,
    written,
)
from coordinator.edge.text.conversation import ToolCall, Turn


def kept(size, tenant="", turns=()):
    return KeptResponse(tenant, b"x" * size, b"", written(turns) if turns else b"")


def test_the_oldest_leave_first():
    window = ResponseWindow(most=2)
    for name in "abc":
        window.keep(name, kept(1))
    assert len(window) == 2
    assert window.find("b", "") is not window.find("c", "")
    with pytest.raises(ResponseNotFound):
        window.find("a", "")


def test_turns_and_what_they_have_besides_are_counted():
    small = kept(0, turns=[Turn("user", "é")])
    large = kept(0, turns=[Turn("user", "é", calls=[ToolCall("f", "x" * 100)])])
    assert small.num_bytes > len("é".encode())
    assert large.num_bytes > small.num_bytes + 100


def test_turns_come_back_as_they_were():
    call = ToolCall("f", '{"a": 1}', "call_1")
    turns = [
        Turn("user", ("a", "b"), path="input[0]"),
        Turn("assistant", "", {}, (call,), "thought"),
        Turn("tool", "é\n", {"tool_call_id": "call_1"}),
    ]
    window = ResponseWindow()
    window.keep("r", kept(1, turns=turns))
    back = window.turns_before("r", "")
    assert [(t.role, t.content, t.others, list(t.calls), t.reasoning, t.path) for t in back] == [
        (t.role, t.content, t.others, list(t.calls), t.reasoning, t.path) for t in turns
    ]


def test_one_that_is_larger_than_the_window_pushes_nobody_out():
    window = ResponseWindow(most_bytes=100)
    window.keep("a", kept(50))
    window.keep("b", kept(101))
    assert window.find("a", "").told
    assert len(window) == 1


def test_nobody_loses_any_for_one_who_has_more():
    window = ResponseWindow(most=8, most_bytes=1000)
    for name in ("a", "b"):
        window.keep(name, kept(100, "small"))
    for number in range(50):
        window.keep(f"many{number}", kept(1, "many"))
    for number in range(50):
        window.keep(f"large{number}", kept(300, "large"))
    assert window.find("a", "small").told
    assert window.find("b", "small").told
    assert window.find("large49", "large").told
    assert len(window) <= 8
    assert window.num_bytes <= 1000


TENANTS = st.sampled_from(["", "t", "u"])


@given(
    st.lists(st.tuples(st.booleans(), TENANTS, st.integers(0, 9), st.integers(0, 60)), max_size=60)
)
def test_bounds_hold_and_the_sum_is_true(steps):
    window, books = ResponseWindow(4, 100), {}
    for number, (drops, tenant, name, size) in enumerate(steps):
        if drops:
            try:
                window.drop(str(name), tenant)
            except ResponseNotFound:
                continue
        else:
            books[str(number)] = kept(size, tenant)
            window.keep(str(number), books[str(number)])
        found = [each for each in books if _is_in(window, each, books[each].tenant)]
        assert len(window) == len(found) <= 4
        assert window.num_bytes == sum(books[each].num_bytes for each in found) <= 100


def _is_in(window, name, tenant):
    try:
        window.find(name, tenant)
    except ResponseNotFound:
        return False
    return True
