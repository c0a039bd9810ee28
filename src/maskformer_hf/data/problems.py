"""Collecting what readers left out, or took for something else than it is."""

from .sample import Problem


class ProblemCounter:
    """Collects `Problem`s. It counts all of a kind and keeps the first ten as examples."""

    def __init__(self) -> None:
        self.examples: dict[str, list[str]] = {}
        self.counts: dict[str, int] = {}
        self._once: set[tuple[str, str]] = set()

    def add(self, what: str, where: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
        if self.counts[what] <= 10:
            self.examples.setdefault(what, []).append(where)

    def add_once(self, what: str, where: str) -> None:
        """As `add`, but nothing if this was added before: a sample may be read many times."""
        if (what, where) not in self._once:
            self._once.add((what, where))
            self.add(what, where)

    def problems(self) -> list[Problem]:
        return [Problem(what, count, self.examples[what]) for what, count in self.counts.items()]
