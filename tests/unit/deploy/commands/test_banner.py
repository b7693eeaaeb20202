"""What a person sees when a server is ready: names stand as they are, whatever they look like."""

from __future__ import annotations

import io

import msgspec
import pytest
from rich.console import Console

from deploy.commands.banner import show_banner
from deploy.launch.plan import Plan
from tests.unit.deploy.launch.test_plan import plan


@pytest.mark.parametrize("name", ["a[/b]", "a[red]", "a[b]c", ":smile:", "100%", "a\\[b]"])
def test_a_models_name_is_no_markup(name: str) -> None:
    made, shown = plan(), io.StringIO()
    called = msgspec.structs.replace(made.coordinator.model, served_names=(name,))
    coordinator = msgspec.structs.replace(made.coordinator, model=called)
    news = dict.fromkeys(("backend", "launcher", "nodes"), name)
    console = Console(file=shown, highlight=False, width=200)
    show_banner(console, Plan(coordinator, made.workers), news, 1.0)
    table = shown.getvalue().partition("curl")[0]
    assert sum(name in line for line in table.splitlines()) == 4
