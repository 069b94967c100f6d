"""What was tried and what it cost: every fault of the suite is counted, and the sum is printed at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Fault:
    """One injected fault. `lost` and `doubled` are rows, counted by `rows`.

    Attributes:
        kind: row of the table, such as "SIGKILL of a task". where: what was hit.
        compared: rows that were compared. survived: its block ended without an error.
    """

    kind: str
    where: str
    compared: int = 0
    lost: int = 0
    doubled: int = 0
    survived: bool = False

    def rows(self, expected: Iterable[Hashable], found: Iterable[Hashable]) -> None:
        """Compare two multisets of rows and count what differs. Raises AssertionError if anything does."""
        wanted, there = Counter(expected), Counter(found)
        lost, more = wanted - there, there - wanted
        assert wanted, f"{self.where}: nothing to compare"
        self.compared += wanted.total()
        self.lost += lost.total()
        self.doubled += more.total()
        assert not lost and not more, (
            f"{self.kind}, {self.where}: {lost.total()} rows lost, such as {list(lost)[:2]}; "
            f"{more.total()} more than expected, such as {list(more)[:2]}"
        )


@dataclass
class Tally:
    """The faults of one test; `conftest.py` sums them up over all."""

    faults: list[Fault] = field(default_factory=list)

    @contextmanager
    def fault(self, kind: str, where: str) -> Iterator[Fault]:
        """A block that injects one fault, lets the system recover and asserts.

        with tally.fault("SIGKILL of a task", "score: predict, after its commit") as fault:
            ...
            fault.rows(expected, found)
        """
        tried = Fault(kind, where)
        self.faults.append(tried)
        yield tried
        tried.survived = True

    def plain(self) -> list[dict[str, Any]]:
        return [asdict(fault) for fault in self.faults]


def summary(faults: list[dict[str, Any]]) -> list[str]:
    """The table that ends a run: a line per kind, and their sum."""
    names = ("tried", "survived", "rows compared", "rows lost", "rows doubled")
    lines: dict[str, list[int]] = {}
    for fault in faults:
        for kind in (fault["kind"], "all"):
            counts = lines.setdefault(kind, [0] * len(names))
            one = (1, fault["survived"], fault["compared"], fault["lost"], fault["doubled"])
            lines[kind] = [a + int(b) for a, b in zip(counts, one, strict=True)]
    lines["all"] = lines.pop("all", [0] * len(names))
    width = max(len(kind) for kind in lines)
    rows = [
        "  ".join([kind.ljust(width), *(str(n).rjust(len(name)) for n, name in zip(counts, names, strict=True))])
        for kind, counts in lines.items()
    ]
    return ["  ".join(["fault".ljust(width), *names]), *rows]
