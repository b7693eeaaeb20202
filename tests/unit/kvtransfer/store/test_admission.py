"""Which blocks are worth a write: those that come again, and new ones as long as new ones come again."""

from __future__ import annotations

from itertools import count

from kvtransfer.store.admission import Admission

CAPACITY = 100


def key(number: int) -> bytes:
    return number.to_bytes(16, "little")


def one_off(admission: Admission, numbers: range) -> int:
    """How many are taken."""
    return sum(admission.offer(key(number), 1) for number in numbers)


def test_an_empty_disk_takes_everything_once() -> None:
    assert one_off(Admission(CAPACITY), range(CAPACITY)) == CAPACITY


def test_prompts_that_never_return_soon_cost_no_writes() -> None:
    admission = Admission(CAPACITY)
    one_off(admission, range(20 * CAPACITY))
    assert one_off(admission, range(20 * CAPACITY, 40 * CAPACITY)) == 0


def test_what_comes_a_second_time_is_taken_even_then() -> None:
    admission = Admission(CAPACITY)
    one_off(admission, range(20 * CAPACITY))
    assert not admission.offer(b"again", 1)
    one_off(admission, range(20 * CAPACITY, 22 * CAPACITY))
    assert admission.offer(b"again", 1)


def test_what_was_used_elsewhere_came_a_second_time() -> None:
    admission = Admission(CAPACITY)
    one_off(admission, range(20 * CAPACITY))
    assert not admission.offer(b"again", 1)
    admission.use(b"again")
    assert admission.offer(b"again", 1)


def test_what_was_forgotten_is_new() -> None:
    admission = Admission(CAPACITY)
    one_off(admission, range(20 * CAPACITY))
    assert not admission.offer(b"again", 1)
    one_off(admission, range(20 * CAPACITY, 30 * CAPACITY))
    assert not admission.offer(b"again", 1)


def test_new_blocks_are_taken_again_when_they_come_again() -> None:
    admission = Admission(CAPACITY)
    one_off(admission, range(20 * CAPACITY))
    for number in range(20 * CAPACITY, 30 * CAPACITY):  # every block twice
        admission.offer(key(number), 1)
        admission.use(key(number))
    assert one_off(admission, range(30 * CAPACITY, 30 * CAPACITY + 10)) == 10


def test_what_is_remembered_is_bounded() -> None:
    admission = Admission(CAPACITY)
    for number in count():
        admission.offer(key(number), 1)
        if number == 50 * CAPACITY:
            break
    assert len(admission._on_trial) + len(admission._known) <= 8 * CAPACITY + 1
