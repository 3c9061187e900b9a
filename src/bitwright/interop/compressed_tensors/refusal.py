"""Why something cannot be expressed, as a value."""

from __future__ import annotations

from dataclasses import dataclass

from bitwright.errors import InputError


@dataclass(frozen=True)
class Refusal:
    """A reason (a clause), the nearest thing that can be expressed, and what of a layer it is about (its weight)."""

    why: str
    nearest: str
    what: str = ""

    @property
    def reason(self) -> str:
        """The reason with what it is about."""
        return f"{self.what}: {self.why}" if self.what else self.why

    def error(self, path: str) -> InputError:
        """The error that stops an export at a layer."""
        what = f"{self.what} " if self.what else ""
        return InputError(f"{path}: {what}not representable because {self.why}; nearest legal: {self.nearest}")
