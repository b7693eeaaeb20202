"""How far a model is prepared. Owns the stages of it; who prepares tells them, and a person sees a bar."""

from __future__ import annotations

import enum
from collections.abc import Callable


class PrepareStage(enum.StrEnum):
    """What takes a while, in order; a model that was prepared before goes through none."""

    DOWNLOAD = "download"
    EXTRACT = "extract"
    CONVERT = "convert"


Progress = Callable[[PrepareStage, float], None]
"""The stage, and how much of it is done (0 to 1)."""
