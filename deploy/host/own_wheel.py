"""The wheel of the Baton that runs, made anew from its installed files. Owns which files are part of it.

What pip wrote at the installation (scripts, caches, its own notes) is none of them; `RECORD` is made to agree.
"""

from __future__ import annotations

import zipfile
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from deploy.config.topology import HOME

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "baton_serve"
WRITTEN_BY_PIP = ("INSTALLER", "REQUESTED", "direct_url.json")
EPOCH = (1980, 1, 1, 0, 0, 0)
"""Equal files make equal wheels."""


def is_checkout() -> bool:
    """Whether Baton runs from a checkout: then there is no wheel to be had from it."""
    return HOME.name != NAME


def own_distribution() -> Distribution | None:
    """The installed one whose files run; None from a checkout."""
    try:
        found = distribution("baton-serve")
    except PackageNotFoundError:
        return None
    return None if is_checkout() else found


def wheel_name(installed: Distribution) -> str:
    """As pip wants it."""
    return f"{NAME}-{installed.version}-py3-none-any.whl"


def write_wheel(installed: Distribution, folder: Path) -> Path:
    """In `folder`; pip installs it as it did the one before."""
    path = folder / wheel_name(installed)
    lines: list[str] = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        record = ""
        for file, line in _carried(installed):
            if file.name == "RECORD" and file.parent.name.endswith(".dist-info"):
                record = str(file)
            else:
                content = Path(str(installed.locate_file(file))).read_bytes()
                wheel.writestr(zipfile.ZipInfo(str(file), EPOCH), content)
            lines.append(line)
        wheel.writestr(zipfile.ZipInfo(record, EPOCH), "".join(f"{line}\n" for line in lines))
    return path


def _carried(installed: Distribution) -> Iterator[tuple[PurePosixPath, str]]:
    for line in (installed.read_text("RECORD") or "").splitlines():
        file = PurePosixPath(line.rsplit(",", 2)[0].strip('"'))
        ours = file.parts[0] in (NAME, f"{NAME}.pth") or file.parts[0].endswith(".dist-info")
        if ours and file.name not in WRITTEN_BY_PIP and "__pycache__" not in file.parts:
            yield file, line
