"""Each policy that peers ship breaks a promise in the model in which Baton's keeps them all."""

from __future__ import annotations

from tests.model.peer_policies import pull, push


def test_push_that_frees_on_abort_decodes_foreign_bytes() -> None:
    assert push(on_abort="free").is_unsafe


def test_push_that_holds_until_done_leaks_when_done_is_lost() -> None:
    verdict = push(on_abort="hold")
    assert verdict.leaks
    assert not verdict.is_unsafe


def test_push_that_holds_then_times_out_decodes_foreign_bytes() -> None:
    verdict = push(on_abort="timeout")
    assert verdict.is_unsafe


def test_pull_without_digest_decodes_torn_or_foreign_bytes() -> None:
    assert pull(digest=False, lease=True).is_unsafe


def test_pull_without_lease_strands_blocks_on_a_living_source() -> None:
    verdict = pull(digest=True, lease=False)
    assert verdict.is_stuck
    assert not verdict.is_unsafe


def test_pull_with_lease_and_digest_is_clean() -> None:
    verdict = pull(digest=True, lease=True)
    assert verdict.is_clean
    assert verdict.states > 10_000
