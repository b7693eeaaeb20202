"""The process that tries grammars, when it does not start: whoever asked may come again."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.processes import grammar_child
from deploy.processes.grammar_child import GrammarProcess
from protocol.constraints import json_schema
from protocol.errors import GrammarsUnavailable


async def test_one_that_ends_at_its_start_says_how(tmp_path: Path) -> None:
    process = GrammarProcess(tmp_path, 100, [2])
    with pytest.raises(GrammarsUnavailable, match=r"with status [1-9]") as told:
        await process.refusal(json_schema({"type": "string"}))
    assert (told.value.http_status, told.value.retry_after_s) == (503, 10.0)


async def test_one_that_is_too_slow_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_child, "START_S", 0.0)
    process = GrammarProcess(tmp_path, 100, [2])
    with pytest.raises(GrammarsUnavailable, match="was not ready within 0 s"):
        await process.refusal(json_schema({"type": "string"}))
    assert process._process is None
