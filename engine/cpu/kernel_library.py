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
from protocol.quantization import Quantization

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocol.model_config import ModelConfig

MAX_QUERY_GROUP = 48
MAX_HEAD_DIM = 256
MAX_PARTS = 3
_SOURCES = (
    "decoder.c",
    "decoder.h",
    "adapters.h",
    "ahead.h",
    "attention.h",
    "forward.h",
    "lending.h",
    "operations.h",
    "product.h",
    "quantized.h",
    "tiles.h",
    "vector.h",
)
_FLAGS = (
    "-O3",
    "-fopenmp",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-strict-aliasing",
    "-shared",
    "-fPIC",
    "-w",
)
TARGETS = {
    "native": ("-march=native",),
    "avx512_bf16": ("-march=x86-64-v4", "-mavx512bf16", "-mavx512vnni"),
    "avx512": ("-march=x86-64-v4",),
    "avx2": ("-march=x86-64-v3",),
    "portable": (),
}
"""Compiler flags of the processors that kernels are built for; all but `native` are for tests."""
_CPUINFO = Path("/proc/cpuinfo")
ARITHMETIC_VERSION = 2
"""Rises when the same instructions add in another order: workers of both kinds must not share KV."""
BYTES_VERSION = 1
"""Rises when bytes are made or added otherwise (engine.cpu.quantized, kernels/quantized.h)."""
_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class KernelsUnavailable(Exception):
    """No compiled kernels here; the text says why, in a few words."""


def unknown_sizes(config: ModelConfig) -> str | None:
    """Why kernels do not serve a model of these sizes, in a few words; None where they do."""
    if (
        config.head_dim % 32
        or config.head_dim > MAX_HEAD_DIM
        or config.num_heads // config.num_kv_heads > MAX_QUERY_GROUP
        or config.hidden_size % 16
        or config.intermediate_size % 16
    ):
        return "no C kernels for these sizes"
    return None


def compiler() -> str | None:
    """The C compiler of this machine."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


class Matrix(ctypes.Structure):
    """`Matrix` of kernels/decoder.h, field by field; so are the next."""

    _fields_: ClassVar[Any] = [
        *((name, _POINTER) for name in ("panels", "bias")),
        *((name, _INT) for name in ("outputs", "words", "gated", "inputs", "quantized")),
    ]


class Layer(ctypes.Structure):
    """One decoder layer."""

    _fields_: ClassVar[Any] = [
        *((name, Matrix) for name in ("qkv", "out", "gate_up", "down")),
        *((name, _POINTER) for name in ("input_norm", "post_norm", "q_norm", "k_norm")),
    ]


class Decoder(ctypes.Structure):
    """What does not change from step to step."""

    _fields_: ClassVar[Any] = [
        ("layers", ctypes.POINTER(Layer)),
        ("norm", _POINTER),
        ("head", Matrix),
        ("rope", _POINTER),
        *((name, _INT) for name in ("num_layers", "hidden", "num_heads", "num_kv_heads")),
        *((name, _INT) for name in ("head_dim", "window")),
        *((name, _FLOAT) for name in ("epsilon", "scale")),
    ]


class AdapterPart(ctypes.Structure):
    """What an adapter adds to some outputs of a matrix."""

    _fields_: ClassVar[Any] = [
        *((name, _POINTER) for name in ("a", "b")),
        *((name, _INT) for name in ("rank", "inputs", "first", "outputs")),
    ]


class AdapterMatrix(ctypes.Structure):
    """Its parts of one matrix: of q, k and v, or gate and up."""

    _fields_: ClassVar[Any] = [("parts", AdapterPart * MAX_PARTS), ("count", _INT)]


class AdapterLayer(ctypes.Structure):
    """Its parts of one decoder layer."""

    _fields_: ClassVar[Any] = [(name, AdapterMatrix) for name in ("qkv", "out", "gate_up", "down")]


class Segment(ctypes.Structure):
    """Rows of one adapter."""

    _fields_: ClassVar[Any] = [
        ("layers", ctypes.POINTER(AdapterLayer)),
        *((name, _INT) for name in ("first", "end", "sampled_first", "sampled_end")),
    ]


class Step(ctypes.Structure):
    """One step over a ragged batch."""

    _fields_: ClassVar[Any] = [
        ("decoder", ctypes.POINTER(Decoder)),
        *((name, _POINTER) for name in ("kv", "positions", "query_starts", "block_tables")),
        *(
            (name, _POINTER)
            for name in ("sample_rows", "residual", "scratch", "logits", "team", "states")
        ),
        *((name, _INT) for name in ("table_width", "num_sequences", "num_tokens", "num_samples")),
        *((name, _INT) for name in ("block_size", "num_threads")),
        ("segments", ctypes.POINTER(Segment)),
        ("num_segments", _INT),
    ]


class Product(ctypes.Structure):
    """One matrix product."""

    _fields_: ClassVar[Any] = [
        ("matrix", ctypes.POINTER(Matrix)),
        *((name, _POINTER) for name in ("x", "out", "wide", "team")),
        *((name, _INT) for name in ("rows", "adds", "num_threads")),
        ("extra", _POINTER),
        ("extra_from", _INT),
    ]


class Kernels:
    """The functions of one compiled library, for one element type (f32 or bf16), and matrices kept in one way.

    `arithmetic` names the order of every sum: equal names, equal bits. `layout` names the panels.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        suffix: str,
        quantization: Quantization = Quantization.NONE,
    ) -> None:
        def function(name: str, *arguments: type) -> Callable[..., None]:
            found = library[f"{name}_{suffix}"]
            found.argtypes, found.restype = arguments, None
            return found

        step = ctypes.POINTER(Step)
        self.forward = function("forward", step)
        self.norm = function("norm", *(_POINTER,) * 3, _INT, _INT, _FLOAT, _INT)
        self.product = function("product", ctypes.POINTER(Product))
        self.attend = function("attend", step, _INT, *(_POINTER,) * 3)
        self._scratch_bytes = library[f"scratch_bytes_{suffix}"]
        self._scratch_bytes.argtypes = (ctypes.POINTER(Decoder), *(_INT,) * 4)
        self._scratch_bytes.restype = _INT
        self.pack = library.pack
        self.pack.argtypes, self.pack.restype = (_POINTER, _POINTER, *(_INT,) * 4), None
        library.prepare()
        library.arithmetic.argtypes, library.arithmetic.restype = (_INT,), ctypes.c_char_p
        name: bytes = library.arithmetic(suffix == "bf16")
        self.arithmetic = f"{name.decode()}/{ARITHMETIC_VERSION}"
        self.panel_columns: int = library.panel_columns()
        self.layout = f"panels{self.panel_columns}-gated"
        self.widens = suffix == "bf16" and bool(library.widens())
        self.quantization = quantization
        if quantization is Quantization.INT8:
            self.arithmetic += f"+int8/{BYTES_VERSION}"
            self.layout += f"-int8-{BYTES_VERSION}"
            self.widens = True
        self.open_team = library.open_team
        self.open_team.argtypes = (_POINTER, _POINTER, _INT, ctypes.c_uint32)
        self.open_team.restype = _POINTER
        self.close_team = library.close_team
        self.close_team.argtypes, self.close_team.restype = (_POINTER,), None
        self.all_are_back = library.all_are_back
        self.all_are_back.argtypes, self.all_are_back.restype = (_POINTER,), _INT
        self.begin_lending = library.begin_lending
        self.begin_lending.argtypes, self.begin_lending.restype = (_POINTER, _POINTER, _INT), None
        self.claim_items, self.finish_items = library.claim_items, library.finish_items
        self.claim_items.argtypes = (_POINTER, _INT, ctypes.POINTER(_INT))
        self.claim_items.restype = _INT
        self.finish_items.argtypes, self.finish_items.restype = (_POINTER, _INT, _INT, _INT), None

    def scratch_bytes(
        self, decoder: Decoder, tokens: int, samples: int, helpers: int, adapted: int = 0
    ) -> int:
        """What a step of so many tokens needs for its intermediate results, with so many lent threads; `adapted` of the
        tokens have an adapter."""
        return int(self._scratch_bytes(ctypes.byref(decoder), tokens, samples, helpers, adapted))


def load_kernels(
    cache: Path,
    suffix: str,
    target: str = "native",
    quantization: Quantization = Quantization.NONE,
) -> Kernels:
    """The kernels for elements of `suffix`, compiled into `cache` the first time; KernelsUnavailable if that fails."""
    return Kernels(_load_library(cache, target), suffix, quantization)


def without_slow_products(cpuinfo: str) -> tuple[str, ...]:
    """Flags against an instruction that this processor has and should not use; `cpuinfo` is the kernel's list of features.

    Intel's have tiles for products of bfloat16. Where these are withheld, as in many virtual machines, one `vdpbf16ps`
    takes as long as four fused multiply-adds and does the work of two (docs/LOG.md). AMD's takes as long as one.
    """
    is_intel = "GenuineIntel" in _line(cpuinfo, "vendor_id")
    has_tiles = "amx_bf16" in _instruction_sets(cpuinfo).split()
    return ("-mno-avx512bf16",) if is_intel and not has_tiles else ()


def asking_ahead(cpuinfo: str) -> tuple[str, ...]:
    """Flags for a processor that had better ask for lines in its second cache first; `cpuinfo` as above.

    AMD's of family 25 with AVX-512 (Zen 4): decode steps of 8 to 32 rows took 0.75 to 0.85 of the time
    (docs/LOG.md). Zen 5 and Intel's with tiles are slower that way.
    """
    is_amd = "AuthenticAMD" in _line(cpuinfo, "vendor_id")
    family = _line(cpuinfo, "cpu family").rpartition(":")[2].strip()
    has_vectors = "avx512f" in _instruction_sets(cpuinfo).split()
    return ("-DSECOND_CACHE_FIRST",) if is_amd and family == "25" and has_vectors else ()


def _load_library(cache: Path, target: str) -> ctypes.CDLL:
    found = compiler()
    if found is None:
        raise KernelsUnavailable("no C compiler")
    try:
        cpuinfo = _CPUINFO.read_text(encoding="utf-8")
        fitted = (*without_slow_products(cpuinfo), *asking_ahead(cpuinfo))
        command = [found, *_FLAGS, *TARGETS[target], *(fitted if target == "native" else ())]
        path = cache / f"decoder-{_key(command, cpuinfo)}.so"
        if not path.exists():
            cache.mkdir(parents=True, exist_ok=True)
            with locked(path.with_suffix(".lock")):
                if not path.exists():
                    _compile(command, path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        raise KernelsUnavailable(f"C kernels did not build: {error}") from error


def _source_directory() -> Path:
    return Path(__file__).parent / "kernels"


def _key(command: list[str], cpuinfo: str) -> str:
    version = subprocess.run([command[0], "--version"], capture_output=True, check=True).stdout
    digest = hashlib.blake2b(version + " ".join(command).encode(), digest_size=12)
    digest.update(_instruction_sets(cpuinfo).encode())
    for name in _SOURCES:
        digest.update((_source_directory() / name).read_bytes())
    return digest.hexdigest()


def _instruction_sets(cpuinfo: str) -> str:
    """The processor's features, as the kernel lists them: what -march=native depends on."""
    return _line(cpuinfo, "flags", "Features")


def _line(cpuinfo: str, *beginnings: str) -> str:
    """The first line of that name; empty where there is none."""
    return next((line for line in cpuinfo.splitlines() if line.startswith(beginnings)), "")


def _compile(command: list[str], path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        output = Path(name, "decoder.so")
        source = str(_source_directory() / _SOURCES[0])
        done = subprocess.run(
            [*command, "-o", str(output), source, "-lm"],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        if done.returncode != 0:
            raise OSError(done.stderr.strip().splitlines()[-1] if done.stderr else "no message")
        output.replace(path)
