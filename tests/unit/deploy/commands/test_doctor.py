"""What `baton doctor` says of the transports."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.commands import doctor
from kvtransfer.transports import trial
from protocol.errors import TransferError


def checks() -> dict[str, doctor.Check]:
    return {check.name: check for check in doctor.transports()}


def test_every_transport_is_stated() -> None:
    assert set(checks()) == {f"transport {name}" for name in ("cuda", "shm", "nixl", "ucx", "zmq")}


def test_shm_and_zmq_carry_a_block() -> None:
    found = checks()
    for name in ("transport shm", "transport zmq"):
        assert found[name].state == "good"
        assert "works: a block in" in found[name].detail


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvtransfer.transports.select.find_spec", lambda name: None)
    assert checks()["transport nixl"].detail == "optional: pip install nixl-cu12"


def test_transport_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, directory: Path) -> float:
        raise TransferError("no route")

    monkeypatch.setattr(doctor, "round_trip_s", fail)
    assert checks()["transport zmq"].detail == "does not work here: no route"


def test_block_that_arrives_changed_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    link = "kvtransfer.transports.shm.ShmLink.read"
    monkeypatch.setattr(link, lambda *_: None)
    with pytest.raises(TransferError, match="arrived changed"):
        trial.round_trip_s("shm", tmp_path)
