"""The HTTP server's setup leaves alone what belongs to the process."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from coordinator.edge.http.wire.server import make_server
from deploy.processes.log_lines import QueuedLines

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger("a part of the coordinator")


def test_making_a_server_leaves_the_log_of_its_process_open(tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("w+") as file:
        lines = QueuedLines(file.fileno())
        logging.getLogger().addHandler(lines)
        try:
            make_server(lambda: None, host="127.0.0.1", port=0)
            log.warning("after the server")
            logging.getLogger("uvicorn.error").warning("from the server")
        finally:
            logging.getLogger().removeHandler(lines)
            lines.close()
        file.seek(0)
        assert file.read().split("\n") == ["after the server", "from the server", ""]
