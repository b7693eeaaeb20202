"""How a wheel is laid out: every package inside `baton_serve`, and a path file beside it. Owns setuptools' steps.

An editable install is left alone: it is one plain path to the checkout.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools.command.build_py import build_py
from setuptools.command.egg_info import egg_info

NAME = "baton_serve"
CARRIED = ("constraints.txt",)
"""Files of the checkout's root that `baton init` writes."""


class IntoOnePackage(build_py):  # type: ignore[misc]
    """Builds as always, then moves what was built."""

    def run(self) -> None:
        """To `build_lib`."""
        target = Path(self.build_lib)
        shutil.rmtree(target / NAME, ignore_errors=True)  # of a build before
        super().run()
        if self.editable_mode:
            return
        names = {package.partition(".")[0] for package in self.packages} - {NAME}
        for name in sorted(names):
            shutil.move(target / name, target / NAME / name)
        for name in CARRIED:
            shutil.copy(name, target / NAME / name)
        (target / f"{NAME}.pth").write_text(f"{NAME}\n", encoding="ascii")


class OneName(egg_info):  # type: ignore[misc]
    """What is installed has one name, and says so to those who ask whose `engine` is."""

    def run(self) -> None:
        """As always, but for the names."""
        super().run()
        Path(self.egg_info, "top_level.txt").write_text(f"{NAME}\n", encoding="ascii")
