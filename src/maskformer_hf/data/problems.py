"""Collecting what readers left out."""

from .sample import Problem


class ProblemCounter:
    """Collects `Problem`s. It counts all of a kind and keeps the first ten as examples."""

    def __init__(self) -> None:
        self.examples: dict[str, list[str]] = {}
        self.counts: dict[str, int] = {}

    def add(self, what: str, where: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
        if self.counts[what] <= 10:
            self.examples.setdefault(what, []).append(where)

    def problems(self) -> list[Problem]:
        return [Problem(what, count, self.examples[what]) for what, count in self.counts.items()]
