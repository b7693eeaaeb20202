"""Which adapters are in a worker's memory. Owns the order in which they leave: least recently used first.

One that a sequence holds stays, whoever else came since, and is found here as long: the mapping goes with its last holder.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from engine.adapters.content import map_content
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from engine.adapters.content import Content
    from protocol.adapters import AdapterRef


class ResidentAdapters:
    """At most `most` that nobody need hold. Satisfies protocol.adapters.AdapterSource. `digests` may be read by other threads."""

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
        self._kept: OrderedDict[str, Content] = OrderedDict()
        self._alive: WeakValueDictionary[str, Content] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def digests(self) -> tuple[str, ...]:
        """Of those that stay mapped, the last used last."""
        return tuple(self._kept)

    def hold(self, ref: AdapterRef) -> Content:
        """The adapter of that digest, mapped now if it is not; ConfigError when its content is not there."""
        content = self._alive.get(ref.digest)
        if content is None:
            try:
                content = self._load(self._directory, ref.digest)
                self._check(content)
            except ConfigError as error:
                raise ConfigError(f"adapter {ref.name!r}: {error}") from error
            self.loads += 1
            self._alive[ref.digest] = content
        self._kept[ref.digest] = content
        self._kept.move_to_end(ref.digest)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return content
