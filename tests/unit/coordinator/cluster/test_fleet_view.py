"""How the views of several models add up."""

from __future__ import annotations

from coordinator.cluster.fleet_view import added


def test_numbers_lists_and_objects_are_added_place_by_place() -> None:
    first = {"ready": 1, "sizes": [1, 2], "store": {"ready": 1}}
    second = {"ready": 2, "sizes": [10, 20]}
    assert added([first, second]) == {"ready": 3, "sizes": [11, 22], "store": {"ready": 1}}
