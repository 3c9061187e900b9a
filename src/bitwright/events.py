"""Events: every fallback and every decision a user should know of, kept for the report."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from bitwright.errors import CheckError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Event:
    """One thing that did not go the plain way: ``kind`` (a stable word), ``where`` (tensor or unit), ``message``."""

    kind: str
    where: str
    message: str


@dataclass
class Events:
    """Collects events of one job; with ``strict`` the first one raises :class:`CheckError` instead."""

    strict: bool = False
    entries: list[Event] = field(default_factory=list)

    def record(self, kind: str, where: str, message: str) -> None:
        """Keep an event, or raise it under strict mode.

        Raises:
            CheckError: if ``strict`` is set.
        """
        if self.strict:
            raise CheckError(f"{where}: {message} ({kind}; refused because of --strict)")
        logger.warning("%s: %s (%s)", where, message, kind)
        self.entries.append(Event(kind, where, message))
