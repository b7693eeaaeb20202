"""Compiling and loading the C kernels. Owns the compiled file and the C interface; must not know the model.

    <cache>/decoder-<hash of sources, flags, compiler and processor>.so     written beside and renamed

ctypes lets go of the interpreter lock during every call.
"""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from engine.checkpoints.embedded import locked

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_QUERY_GROUP = 48
MAX_HEAD_DIM = 256
MAX_SMALL_ROWS = 8
_SOURCES = ("decoder.c", "decoder.h", "operations.h", "vector.h")
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-shared", "-fPIC", "-w")
_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class KernelsUnavailable(Exception):
    """No compiled kernels here; the text says why, in a few words."""


class Step(ctypes.Structure):
    """`Step` of kernels/decoder.h, field by field."""

    _fields_: ClassVar[Any] = [
        *((name, _POINTER) for name in ("kv", "rope", "positions", "query_starts")),
        *((name, _POINTER) for name in ("context_lengths", "block_tables")),
        *((name, _INT) for name in ("table_width", "num_sequences", "num_tokens", "num_layers")),
        *((name, _INT) for name in ("num_heads", "num_kv_heads", "head_dim", "block_size")),
        *((name, _INT) for name in ("window", "num_threads")),
        *((name, _FLOAT) for name in ("epsilon", "scale")),
    ]


class Kernels:
    """The functions of one compiled library, for one element type (f32 or bf16)."""

    def __init__(self, library: ctypes.CDLL, suffix: str) -> None:
        def function(name: str, *arguments: type) -> Callable[..., None]:
            found = library[f"{name}_{suffix}"]
            found.argtypes, found.restype = arguments, None
            return found

        pointers = (_POINTER,) * 4
        self.add_norm = function("add_norm", *pointers, _INT, _INT, _FLOAT, _INT)
        self.silu_mul = function("silu_mul", _POINTER, _POINTER, _INT, _INT, _INT)
        self.small_product = function("small_product", *pointers, _INT, _INT, _INT, _INT)
        self.attend = function("attend", ctypes.POINTER(Step), _INT, *pointers, _POINTER)


def load_library(cache: Path) -> ctypes.CDLL:
    """The kernels for this processor, compiled into `cache` the first time; KernelsUnavailable if that fails."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise KernelsUnavailable("no C compiler")
    try:
        path = cache / f"decoder-{_key(compiler)}.so"
        if not path.exists():
            cache.mkdir(parents=True, exist_ok=True)
            with locked(path.with_suffix(".lock")):
                if not path.exists():
                    _compile(compiler, path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        raise KernelsUnavailable(f"C kernels did not build: {error}") from error


def _source_directory() -> Path:
    return Path(__file__).parent / "kernels"


def _key(compiler: str) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    digest = hashlib.blake2b(version + " ".join(_FLAGS).encode(), digest_size=12)
    digest.update(instruction_sets().encode())
    for name in _SOURCES:
        digest.update((_source_directory() / name).read_bytes())
    return digest.hexdigest()


def instruction_sets() -> str:
    """The processor's features, as the kernel lists them: what -march=native depends on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def describe_instructions() -> str:
    """The widest instructions that the kernels use here, in one word."""
    flags = instruction_sets().split()
    known = ("avx512_bf16", "avx512f", "avx2", "asimd")
    return next((name for name in known if name in flags), "portable")


def _compile(compiler: str, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        output = Path(name, "decoder.so")
        source = str(_source_directory() / _SOURCES[0])
        command = [compiler, *_FLAGS, "-o", str(output), source, "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        if done.returncode != 0:
            raise OSError(done.stderr.strip().splitlines()[-1] if done.stderr else "no message")
        output.replace(path)
