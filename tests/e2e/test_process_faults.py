"""One process of a server is stopped, or gets nothing more of the kernel, while others stream: nobody else is hurt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.process_faults import attempt, is_harmless, serve
from tests.marks import deep
from tests.patience import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.server import Server

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("store")) as server:
        until(lambda: len(server.cluster()["workers"]) == 3, "all workers")
        yield server


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        deep("grammar", "SIGSTOP-4"),
        deep("coordinator", "EMFILE"),
        deep("coordinator", "ENOMEM"),
        deep("decode", "ENOMEM"),
    ],
)
def test_nobody_else_is_hurt(server: Server, name: str, fault: str) -> None:
    told = attempt(server, name, fault)
    assert is_harmless(told), told
