"""The campaign of adapters, for a short while; `python -m tests.e2e.adapter_campaign` goes on for as long as one likes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e import adapter_campaign
from tests.e2e.server import Server

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("models"), pytest.mark.deep]
SECONDS = 40.0


def test_adapters_of_two_models_answer_as_merged_models_whoever_is_killed(tmp_path: Path) -> None:
    files = adapter_campaign.Files(tmp_path)
    assert len({str(tokens) for tokens in files.oracle.tokens.values()}) > len(files.oracle.names)
    with Server("--config", str(files.config())) as server:
        campaign = adapter_campaign.Campaign(server, files, seed=1)
        campaign.run_beside_kills(SECONDS)
    assert campaign.failures == []
    assert campaign.counts["reload"] > 0
    assert campaign.counts["found in a cache"] > 0
    assert campaign.counts["killed prefill"] + campaign.counts["killed decode"] > 0
