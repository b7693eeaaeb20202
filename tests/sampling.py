"""Which values of a parametrized test `make test` tries: a few, spread over all; the others are `deep`, for `make ci`.

Cases of one function show the same with other values. Of many, a few show most of it, and who changes something waits for
all of them every time. Owns the choice; knows nothing of what a test checks. A test whose values are kinds of their own is
marked `every_value`.
"""

from __future__ import annotations

import pytest

MOST_VALUES = 4


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Before `-m` chooses. What is `deep` by itself does not count."""
    functions: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("deep") is None:
            functions.setdefault(_function(item), []).append(item)
    for cases in functions.values():
        for case in _all_but_a_few(cases):
            case.add_marker(pytest.mark.deep)


def _function(item: pytest.Item) -> str:
    return item.nodeid.partition("[")[0]


def _all_but_a_few(cases: list[pytest.Item]) -> list[pytest.Item]:
    if len(cases) <= MOST_VALUES or cases[0].get_closest_marker("every_value") is not None:
        return []
    last = len(cases) - 1
    chosen = {round(last * i / (MOST_VALUES - 1)) for i in range(MOST_VALUES)}
    return [case for i, case in enumerate(cases) if i not in chosen]
