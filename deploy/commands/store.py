"""`baton store`: what lies in a store's folder on disk, proven on request, or deleted. Owns its own command line.

It looks at files, so no server may be using them: a folder in use is refused, and the error names the process. `--path` is
the folder that `--kv-store` names, with those of all its stores, or one of these.
"""

from __future__ import annotations

import json
import re
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from deploy.commands.status import plain_console
from deploy.config.parser import Parser
from kvtransfer.store.disk import Disk, PathLock
from kvtransfer.store.inspection import clear, survey, verify
from protocol.errors import BatonError, ConfigError
from protocol.roles import Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kvtransfer.store.inspection import SegmentSurvey
    from kvtransfer.store.records import BlockRecord

Row = dict[str, Any]
STORE_NAME = re.compile(rf"(.+\.)?{Role.STORE}-\d+")
"""Of a store's own folder, which is called as the store is."""


def main(argv: Sequence[str]) -> int:
    """Exit status: 1 when `verify` found a block that is not what was put."""
    namespace = make_parser().parse_args(list(argv))
    if "act" not in namespace:
        raise ConfigError("store: say what to do: baton store ls|stats|verify|clear --path FOLDER")
    path: Path = namespace.path
    if not path.is_dir():
        raise ConfigError(f"--path: there is no folder {path}")
    try:
        within = stores_in(path)
        with ExitStack() as locks:
            for folder in (path, *within):
                locks.callback(PathLock(folder).release)
            status = int(
                namespace.act([Disk(it) for it in (path, *within)], as_json=namespace.json)
            )
        if namespace.act is run_clear:
            _remove_empty(within)
    except OSError as error:
        raise BatonError(f"{error.filename or path}: {error.strerror}") from error
    return status


def stores_in(path: Path) -> list[Path]:
    """Folders of stores in the folder that --kv-store names, in order."""
    found = (it for it in path.iterdir() if STORE_NAME.fullmatch(it.name))
    return sorted(it for it in found if it.is_dir() and not it.is_symlink())


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        if not any(folder.iterdir()):
            folder.rmdir()


def run_ls(disks: Sequence[Disk], *, as_json: bool) -> int:
    """A line for each block, oldest segment first."""
    for disk in disks:
        for seen in survey(disk):
            for commit in seen.commits:
                row = _block_row(commit.record, seen)
                print(json.dumps(row) if as_json else " ".join(map(str, row.values())))
    return 0


def _block_row(record: BlockRecord, seen: SegmentSurvey) -> Row:
    return {
        "key": record.key.hex(),
        "parent": record.parent.hex(),
        "tokens": record.num_tokens,
        "bytes": record.num_bytes,
        "model": seen.identity.model if seen.identity else None,
        "segment": seen.name,
    }


def run_stats(disks: Sequence[Disk], *, as_json: bool) -> int:
    """What each model has there."""
    rows: dict[tuple[str, str], Row] = {}
    for seen in (seen for disk in disks for seen in survey(disk)):
        _row(rows, seen)
    _show(rows.values(), as_json=as_json)
    return 0


def run_verify(disks: Sequence[Disk], *, as_json: bool) -> int:
    """Read every block; 1 when one is not proven."""
    rows: dict[tuple[str, str], Row] = {}
    wrong = 0
    for disk, (seen, unproven) in ((one, found) for one in disks for found in verify(one)):
        row = _row(rows, seen)
        row["proven"] = row.get("proven", 0) + len(seen.commits) - len(unproven)
        row["unproven"] = row.get("unproven", 0) + len(unproven)
        wrong += len(unproven) + seen.damaged_slots + (seen.header is None)
        for record in unproven:
            print(
                f"{disk.path / seen.name}: block {record.key.hex()} is not what was stored",
                file=sys.stderr,
            )
    _show(rows.values(), as_json=as_json)
    if wrong:
        print(
            f"{wrong} blocks, slots or files are damaged: none of them will be served, and all are "
            "computed again when they are wanted",
            file=sys.stderr,
        )
    return 1 if wrong else 0


def run_clear(disks: Sequence[Disk], *, as_json: bool) -> int:
    """Delete all blocks of all models."""
    freed = sum(clear(disk) for disk in disks)
    print(json.dumps({"freed_bytes": freed}) if as_json else f"freed {freed / (1 << 20):.1f} MiB")
    return 0


def _row(rows: dict[tuple[str, str], Row], seen: SegmentSurvey) -> Row:
    identity = seen.identity
    model = (identity.model if identity else "?", identity.fingerprint.hex() if identity else "?")
    empty = {
        "model": model[0],
        "fingerprint": model[1],
        "segments": 0,
        "blocks": 0,
        "block_bytes": 0,
        "tokens": 0,
        "disk_bytes": 0,
        "damaged_slots": 0,
    }
    row = rows.setdefault(model, empty)
    row["segments"] += 1
    row["blocks"] += len(seen.commits)
    row["block_bytes"] += sum(commit.record.num_bytes for commit in seen.commits)
    row["tokens"] += sum(commit.record.num_tokens for commit in seen.commits)
    row["disk_bytes"] += seen.disk_bytes
    row["damaged_slots"] += seen.damaged_slots
    return row


def _show(rows: Iterable[Row], *, as_json: bool) -> None:
    found = list(rows)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    if not found:
        print("no blocks are stored here")
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in found[0]:
        table.add_column(heading.replace("_", " "))
    for row in found:
        words = {**row, "fingerprint": row["fingerprint"][:12]}
        table.add_row(*(str(value) for value in words.values()))
    plain_console().print(table)


def make_parser() -> Parser:
    """Of every verb."""
    parser = Parser(
        prog="baton store",
        description="The KV blocks that a store keeps on disk: listed, counted, proven, or deleted.",
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(metavar="WHAT", parser_class=Parser)
    _add(verbs, "ls", "a line for each block", run_ls)
    _add(verbs, "stats", "what each model has there", run_stats)
    _add(verbs, "verify", "read and prove every block", run_verify)
    _add(verbs, "clear", "delete all blocks of all models", run_clear)
    return parser


def _add(verbs: Any, name: str, help_text: str, act: Any) -> None:
    parser: Parser = verbs.add_parser(
        name, help=help_text, description=help_text, allow_abbrev=False
    )
    parser.set_defaults(act=act)
    parser.add_argument("--path", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--json", action="store_true", help="for programs")
