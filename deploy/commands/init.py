"""`baton init`: writes the files with which Baton is run somewhere. Owns which files, and that none is overwritten unasked.

From a checkout, cluster files carry the checkout's folders to the hosts; from a wheel, they carry a wheel of what is
installed, which is written beside them.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.config.parser import Parser
from deploy.config.topology import HOME
from deploy.host.own_wheel import own_distribution, wheel_name, write_wheel
from protocol.errors import BatonError, ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

SHIPPED = HOME / "deploy"
WHEEL_FOLDER = "dist"
_MOUNT = re.compile(r'^  "~/baton/(?P<name>[^"]+)": (?P<source>\S+)$', re.MULTILINE)


_FROM_CHECKOUT = re.compile(r"`ray up deploy/ray/[\w-]+\.yaml`, from the root of a checkout")


@dataclass(frozen=True)
class Kit:
    """`files` are (name to write, file shipped); `needs_baton` ones put Baton on other machines."""

    purpose: str
    files: tuple[tuple[str, str], ...]
    then: str
    needs_baton: bool = False


def _tree(folder: str) -> tuple[tuple[str, str], ...]:
    found = sorted(path for path in (SHIPPED / folder).rglob("*") if path.is_file())
    return tuple(
        (str(path.relative_to(SHIPPED / folder)), str(path.relative_to(SHIPPED))) for path in found
    )


KITS: dict[str, Callable[[], Kit]] = {
    "ray": lambda: Kit(
        "machines that you reach by ssh",
        (("cluster.yaml", "ray/cluster-onprem.yaml"),),
        "write in your addresses, then: ray up cluster.yaml",
        needs_baton=True,
    ),
    "aws": lambda: Kit(
        "an AWS account",
        (("cluster.yaml", "ray/cluster-aws.yaml"),),
        "write in region, subnet, group and image, then: ray up cluster.yaml",
        needs_baton=True,
    ),
    "kuberay": lambda: Kit(
        "a Kubernetes cluster with the KubeRay operator",
        _tree("ray/kuberay"),
        "docker build -t baton:0.1.0 . && kubectl apply -f .",
        needs_baton=True,
    ),
    "systemd": lambda: Kit(
        "a host of your own, as a service",
        _tree("init/systemd"),
        "the head of baton.service has the commands",
    ),
    "grafana": lambda: Kit(
        "dashboards, Prometheus and its alerts",
        _tree("observability"),
        "README.md has the commands",
    ),
}


def main(argv: Sequence[str]) -> int:
    """Exit status."""
    parser = Parser(
        prog="baton init",
        description="Write the files with which Baton is run elsewhere; none is overwritten unasked.",
    )
    told = "; ".join(f"{name}: {make().purpose}" for name, make in KITS.items())
    parser.add_argument("what", choices=tuple(KITS), metavar="WHAT", help=told)
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path(), metavar="FOLDER", help="default: this one"
    )
    parser.add_argument("--force", action="store_true", help="overwrite files that are there")
    given = parser.parse_args(list(argv))
    kit = KITS[given.what]()
    installed = own_distribution() if kit.needs_baton else None
    wheel = f"{WHEEL_FOLDER}/{wheel_name(installed)}" if installed is not None else ""
    texts = _texts(kit, wheel)
    _refuse_to_overwrite(given, [*texts, *filter(None, [wheel])])
    try:
        for name, text in texts.items():
            _write(given.folder / name, text)
        if installed is not None:
            print(write_wheel(installed, _folder(given.folder / WHEEL_FOLDER)))
    except OSError as error:
        raise BatonError(f"init: cannot write {error.filename}: {error.strerror}") from None
    if "Dockerfile" in texts and not wheel:
        print(f"first: pip wheel --no-deps -w {WHEEL_FOLDER} {HOME}", file=sys.stderr)
    print(f"next: {kit.then}", file=sys.stderr)
    return 0


def _texts(kit: Kit, wheel: str) -> dict[str, str]:
    """What will be written, by name."""
    texts = {name: (SHIPPED / source).read_text(encoding="utf-8") for name, source in kit.files}
    if kit.needs_baton:
        texts = {name: _carrying(text, wheel) for name, text in texts.items()}
        texts["constraints.txt"] = (HOME / "constraints.txt").read_text(encoding="utf-8")
    return {name: text.replace("@BATON@", str(_command())) for name, text in texts.items()}


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _write(path: Path, text: str) -> None:
    _folder(path.parent)
    path.write_text(text, encoding="utf-8")
    print(path)


def _refuse_to_overwrite(given: argparse.Namespace, names: Sequence[str]) -> None:
    there = [str(given.folder / name) for name in names if (given.folder / name).exists()]
    if there and not given.force:
        raise ConfigError(
            f"init: {', '.join(there)} would be overwritten; give --force, or another folder"
        )


def _carrying(text: str, wheel: str) -> str:
    """A cluster file whose mounts are found from anywhere: a wheel beside it, or the checkout by its path."""
    text = _FROM_CHECKOUT.sub("`ray up cluster.yaml`", text)
    if not wheel:
        return _MOUNT.sub(rf'  "~/baton/\g<name>": {HOME}/\g<source>', text)
    name = wheel.rpartition("/")[2]
    mounts = f'  "~/baton/{name}": {wheel}\n  "~/baton/constraints.txt": constraints.txt'
    first = _MOUNT.search(text)
    if first is None:
        return text
    text = f"{text[: first.start()]}{mounts}\n{_MOUNT.sub('', text[first.start() :]).lstrip()}"
    return text.replace("-e ~/baton[ray]", f"'baton-serve[ray] @ file://'$HOME/baton/{name}")


def _command() -> Path:
    """The `baton` of this environment."""
    return Path(sys.executable).parent / "baton"
