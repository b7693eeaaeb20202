"""The child that converts a model: needs torch, so the launcher does not import it.

usage: python -m deploy.processes.prepare_main SOURCE CACHE DTYPE [dummy] [other-template] [unguarded]

writes a PrepareNews a line.

The files come from anywhere. They are read and checked before torch is imported, which takes longer than all of that;
and whatever goes wrong with them becomes one sentence.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec

from coordinator.edge.http.limits import EdgeLimits
from coordinator.edge.text.chat_template import ChatTemplate, UncompiledTemplate
from coordinator.edge.text.prompts import make_reader
from coordinator.edge.text.tokenizer import TextTokenizer
from deploy.host.model_source import DUMMY, OTHER_TEMPLATE, UNGUARDED, PrepareNews
from deploy.processes.child import follow_parent
from engine.checkpoints.checkpoint import TOKENIZER
from engine.checkpoints.fields import one_line
from engine.checkpoints.source import open_checkpoint
from protocol.clock import SystemClock
from protocol.errors import BatonError, ConfigError

if TYPE_CHECKING:
    from engine.checkpoints.checkpoint import Checkpoint
    from engine.checkpoints.prepared import Dtype


def tell(news: PrepareNews) -> None:
    """One line to the launcher."""
    sys.stdout.buffer.write(msgspec.json.encode(news) + b"\n")
    sys.stdout.buffer.flush()


def _tokenizer_of(checkpoint: Checkpoint, source: str) -> TextTokenizer:
    try:
        return TextTokenizer(checkpoint.files[TOKENIZER])
    except (ValueError, TypeError) as error:  # msgspec's among them: what the library lets pass
        raise ConfigError(f"{TOKENIZER} of {source} is not a usable tokenizer: {error}") from error


def try_texts(checkpoint: Checkpoint, source: str, *, is_guarded: bool) -> None:
    """Make of a model's texts what a coordinator makes of them; ConfigError names the file."""
    places, file = checkpoint.template_places, source
    try:
        template = ChatTemplate.from_files(checkpoint.files)
        file = places.get("default", next(iter(places.values()), source))
        tokenizer = _tokenizer_of(checkpoint, source)
        length = checkpoint.config.max_position_embeddings
        make_reader(tokenizer, template, EdgeLimits(), SystemClock(), length, guarded=is_guarded)
    except UncompiledTemplate as error:
        raise ConfigError(f"{places.get(error.name, source)}: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def main() -> int:
    """Exit status 0 when the prepared directory is there, 2 when the model cannot be served."""
    follow_parent(os.getppid())
    source, cache, dtype, *rest = sys.argv[1:]
    is_dummy = DUMMY in rest
    try:
        checkpoint = open_checkpoint(Path(source), with_weights=not is_dummy)
        if OTHER_TEMPLATE not in rest:
            try_texts(checkpoint, source, is_guarded=UNGUARDED not in rest)
        from engine.checkpoints.prepare import prepare

        prepare(
            Path(source),
            Path(cache),
            cast("Dtype", dtype),
            lambda stage, fraction: tell(PrepareNews(stage=stage, fraction=fraction)),
            is_dummy=is_dummy,
            checkpoint=checkpoint,
        )
    except (BatonError, OSError) as error:
        tell(PrepareNews(error=one_line(str(error))))
        return 2
    except Exception as error:  # noqa: BLE001 - a reader's own mistake: still no traceback for who brought the file
        tell(PrepareNews(error=one_line(f"{source}: {type(error).__name__}: {error}")))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
