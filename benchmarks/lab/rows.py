"""A row of the table: its bar, how it is measured, and what came out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .lab import Lab


class Unsupported(Exception):
    """The library, or this machine, has no such feature; the sentence says which."""


@dataclass(frozen=True)
class Bar:
    value: float
    at_least: bool
    suffix: str = "x"

    def met_by(self, value: float) -> bool:
        return value >= self.value if self.at_least else value <= self.value

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.value:g}{self.suffix}"


def at_least(value: float, suffix: str = "x") -> Bar:
    return Bar(value, True, suffix)


def at_most(value: float, suffix: str = "x") -> Bar:
    return Bar(value, False, suffix)


@dataclass
class Measured:
    """ours, and peer where there is one, are medians in the unit. The bar is compared with the ratio, or with
    ours where there is none."""

    ours: float | None
    peer: float | None
    unit: str
    ratio: float | None
    peak_share: float | None = None
    peer_peak_share: float | None = None
    notes: list[str] = field(default_factory=list)
    is_valid: bool = True  # False where both did not do the same work


@dataclass(frozen=True)
class Row:
    name: str
    what: str
    bar: Bar
    measure: Callable[[Lab], Measured]

    def is_selected_by(self, names: list[str]) -> bool:
        """A name selects its row and those that it is the beginning of: window-end also window-end-bandwidth."""
        return not names or any(self.name == name or self.name.startswith(name + "-") for name in names)


@dataclass(frozen=True)
class Result:
    row: Row
    measured: Measured

    @property
    def met(self) -> bool:
        measured = self.measured
        value = measured.ours if measured.ratio is None else measured.ratio
        return value is not None and measured.is_valid and self.row.bar.met_by(value)
