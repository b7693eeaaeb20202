"""From what a person names to a model that workers can map. Owns the kinds of names; torch-free.

    smollm2-135m (or nothing)   the embedded model       engine.checkpoints.embedded fetches it
    a directory                 Hugging Face layout      used as it is
    a file *.gguf               GGUF                     used as it is
    org/name                    a hub id                 huggingface_hub downloads it

Converting to the prepared form needs torch, so it happens in a child process (`deploy.processes.prepare_main`),
and only when `engine.checkpoints.prepared` does not find it in the cache.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from deploy.config.options import EMBEDDED_MODEL
from deploy.config.topology import child_environment
from engine.checkpoints.embedded import fetch_embedded
from engine.checkpoints.fields import one_line
from engine.checkpoints.prepared import find_prepared, read_manifest
from engine.checkpoints.progress import PrepareStage
from protocol.errors import ConfigError
from protocol.specs import PreparedModel

if TYPE_CHECKING:
    from collections.abc import Collection

    from engine.checkpoints.prepared import Dtype
    from engine.checkpoints.progress import Progress

_HUB_FILES = ("*.safetensors", "*.json", "*.jinja")
DUMMY, OTHER_TEMPLATE, UNGUARDED = "dummy", "other-template", "unguarded"
_BF16_FLAGS = {"avx512_bf16", "amx_bf16"}


class PrepareNews(msgspec.Struct, frozen=True):
    """One line that the preparing child writes: where it is, or what went wrong."""

    stage: PrepareStage | None = None
    fraction: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Source:
    """What was named. `name` is what clients call it by default."""

    kind: Literal["embedded", "directory", "gguf", "hub"]
    location: str
    name: str


def find_source(model: str) -> Source:
    """Tell the kinds apart; ConfigError says what may be named."""
    try:
        return _find_source(model)
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # too long a name, no such home, no permission
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"model: {one_line(model, 200)} cannot be opened: {reason}") from error


def _find_source(model: str) -> Source:
    path = Path(model).expanduser()
    if model == EMBEDDED_MODEL and not path.exists():
        return Source("embedded", model, model)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(
                f"model: {path} has no config.json, so it is no Hugging Face model directory"
            )
        return Source("directory", str(path.resolve()), path.resolve().name)
    if path.is_file():
        if path.suffix != ".gguf":
            raise ConfigError(f"model: {path} is not a .gguf file")
        return Source("gguf", str(path.absolute()), path.stem)
    if path.suffix == ".gguf" or model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise ConfigError(
            f"model: there is no {model!r}; name a model directory, a .gguf file, "
            f"a hub id as org/name, or {EMBEDDED_MODEL}"
        )
    return Source("hub", model, model)


def resolve_dtype(dtype: str, device: str = "cpu", cpuinfo: Path = Path("/proc/cpuinfo")) -> Dtype:
    """auto is bfloat16 on a GPU and where the processor computes in it, else float32."""
    if dtype != "auto":
        return "bfloat16" if dtype == "bfloat16" else "float32"
    computes = device == "cuda" or _BF16_FLAGS & _cpu_flags(cpuinfo)
    return "bfloat16" if computes else "float32"


def _cpu_flags(cpuinfo: Path) -> set[str]:
    if not cpuinfo.is_file():
        return set()
    for line in cpuinfo.read_text(encoding="utf-8").splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()


def fetch(source: Source, cache: Path, progress: Progress) -> Path:
    """The model's files on this host, downloaded where needed."""
    if source.kind == "embedded":
        return fetch_embedded(cache, progress)
    if source.kind == "hub":
        return _download(source.location)
    return Path(source.location)


def _download(hub_id: str) -> Path:
    try:
        import huggingface_hub  # noqa: PLC0415 - optional
    except ImportError:
        raise ConfigError(
            f"model: {hub_id!r} is a hub id, which needs the package huggingface-hub: "
            "pip install 'baton-serve[hub]', or download the model and name its directory"
        ) from None
    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=list(_HUB_FILES)))
    except Exception as error:
        raise ConfigError(
            f"model: could not download {hub_id!r} ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}); "
            "check the name and the network, or name a local directory"
        ) from error


def prepare(
    model: str,
    served_names: tuple[str, ...],
    dtype: Dtype,
    cache: Path,
    progress: Progress,
    flags: Collection[str] = (),
) -> PreparedModel:
    """A model that workers can map: fetched, and converted once. ConfigError when it cannot be. With the flag `DUMMY`
    it has a shape and a tokenizer, and no weights; with `OTHER_TEMPLATE` its own is not used, and may be wrong; with `UNGUARDED` content may spell
    control tokens, so nothing must tell the two apart."""
    is_dummy = DUMMY in flags
    source = find_source(model)
    files = fetch(source, cache, progress)
    directory = find_prepared(files, cache, dtype, is_dummy=is_dummy)
    if directory is None:
        _convert(files, cache, (dtype, *flags), progress)
        directory = find_prepared(files, cache, dtype, is_dummy=is_dummy)
    if directory is None:
        raise ConfigError(f"model: preparing {model!r} left nothing in {cache}; is the disk full?")
    manifest = read_manifest(directory)
    return PreparedModel(
        name=source.name,
        served_names=served_names or (source.name,),
        directory=str(directory),
        config=manifest.config,
        dtype=manifest.dtype,
        weights_hash=manifest.weights_hash,
        tokenizer_hash=manifest.tokenizer_hash,
        warnings=manifest.warnings,
    )


def _convert(files: Path, cache: Path, how: tuple[str, ...], progress: Progress) -> None:
    command = [
        sys.executable,
        "-P",
        "-m",
        "deploy.processes.prepare_main",
        str(files),
        str(cache),
        *how,
    ]
    failure = ""
    with (
        tempfile.TemporaryFile() as complaints,  # tracebacks and panics: not for who started us
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=complaints, env=child_environment()
        ) as child,
    ):
        assert child.stdout is not None
        try:
            for line in child.stdout:
                news = msgspec.json.decode(line, type=PrepareNews)
                failure = news.error or failure
                if news.stage is not None:
                    progress(news.stage, news.fraction)
        except BaseException:
            child.kill()
            raise
    if child.returncode != 0:
        reason = failure or f"reading it ended the converter with status {child.returncode}"
        raise ConfigError(f"model: {files} cannot be served: {reason}")
