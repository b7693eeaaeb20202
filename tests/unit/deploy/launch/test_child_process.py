"""A child that is interrupted while it still imports ends without a traceback, as soon as it can."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING

from deploy.launch.child_process import ChildProcess

if TYPE_CHECKING:
    from pathlib import Path

CHILD = """
import sys
print("importing", flush=True)
open(sys.argv[1]).read()  # a fifo: until the parent has sent its signal
from deploy.processes.child import end_by_interrupt
end_by_interrupt()
print("it went on", flush=True)
"""


def test_interrupted_before_it_is_ready_it_says_nothing(tmp_path: Path) -> None:
    fifo, lines = tmp_path / "fifo", list[str]()
    os.mkfifo(fifo)

    async def run() -> int:
        imports, ended = asyncio.Event(), asyncio.get_running_loop().create_future()

        def on_line(line: str) -> None:
            lines.append(line)
            imports.set()

        command = [sys.executable, "-c", CHILD, str(fifo)]
        environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
        child = ChildProcess(command, environment, on_line, ended.set_result, defers_interrupt=True)
        await imports.wait()
        child.interrupt()
        fifo.write_text("go on")
        status: int = await ended
        return status

    assert asyncio.run(run()) == -signal.SIGINT
    assert lines == ["importing"]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set(), "ours is as it was"
