"""How an adapter's matrices lie in its file, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from engine.adapters.content import (
    FORMAT_VERSION,
    Content,
    ContentHeader,
    panel_bytes,
    panels,
    widened,
)

if TYPE_CHECKING:
    import numpy.typing as npt

SIZES = [(16, 8), (48, 5), (5, 16), (33, 1)]


def numbers(columns: int, chain: int) -> npt.NDArray[np.float32]:
    """All different, and the same in bfloat16."""
    return (np.arange(columns * chain, dtype=np.float32) % 251 + 1).reshape(columns, chain)


def test_a_word_of_bfloat16_has_two_neighbours_along_the_sum() -> None:
    matrix = numbers(16, 6)
    found = widened(np.asarray(panels(matrix, "bfloat16"), dtype=np.uint16))
    assert found.shape == (1, 3, 16, 2)
    np.testing.assert_array_equal(found[0, 1, 7], matrix[7, 2:4])


def test_a_word_of_float32_is_a_number() -> None:
    matrix = numbers(16, 6)
    np.testing.assert_array_equal(panels(matrix, "float32")[0, :, 7, 0], matrix[7])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("columns", "chain"), SIZES)
def test_a_matrix_comes_back_from_its_panels(columns: int, chain: int, dtype: str) -> None:
    matrix = numbers(columns, chain)
    made = panels(matrix, dtype)
    assert made.nbytes == panel_bytes(columns, chain, dtype)
    header = ContentHeader(format_version=FORMAT_VERSION, dtype=dtype, parts=())
    content = Content("d", header, made.reshape(-1).view(np.uint8).data)
    np.testing.assert_array_equal(content.matrix(0, columns, chain), matrix)
    assert np.count_nonzero(made) == matrix.size
