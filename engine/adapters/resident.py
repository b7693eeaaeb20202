"""Which adapters are in a worker's memory. Owns the order in which they leave: least recently used first.

One that a sequence holds stays with the sequence, here or not: the mapping goes with its last holder.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from engine.adapters.content import map_content
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from engine.adapters.content import Content
    from protocol.adapters import AdapterRef


class ResidentAdapters:
    """At most `most` that nobody need hold. Satisfies protocol.adapters.AdapterSource."""

    def __init__(
        self,
        directory: Path,
        most: int,
        check: Callable[[Content], None],
        load: Callable[[Path, str], Content] = map_content,
    ) -> None:
        """`check` raises ConfigError for a content that the engine does not compute."""
        self.loads = 0
        self._directory, self._most, self._check, self._load = directory, most, check, load
        self._contents: OrderedDict[str, Content] = OrderedDict()

    def __len__(self) -> int:
        return len(self._contents)

    def hold(self, ref: AdapterRef) -> Content:
        """The adapter of that digest, mapped now if it is not; ConfigError when its content is not there."""
        content = self._contents.get(ref.digest)
        if content is None:
            try:
                content = self._load(self._directory, ref.digest)
                self._check(content)
            except ConfigError as error:
                raise ConfigError(f"adapter {ref.name!r}: {error}") from error
            self.loads += 1
            self._contents[ref.digest] = content
            while len(self._contents) > self._most:
                self._contents.popitem(last=False)
        self._contents.move_to_end(ref.digest)
        return content
