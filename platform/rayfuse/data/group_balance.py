"""Assignment of whole groups to bins of given shares, each with about its share of the rows and of every class."""

from collections import Counter
from collections.abc import Mapping, Sequence

GroupCounts = Mapping[float, Mapping[str, int]]
"""Number of rows of each class in each group, by the group's position."""


def assign_groups(groups: GroupCounts, shares: Sequence[float]) -> dict[float, int]:
    """Return the index of the bin of each group; with at least as many groups as bins, no bin is empty.

    As in scikit-learn's StratifiedGroupKFold, groups are assigned one by one, the largest first, each to the bin that it
    brings closest to its share of the rows and of each class.
    """
    totals: Counter[str] = Counter()
    for counts in groups.values():
        totals.update(counts)
    bins = [_Bin(share, totals) for share in shares]
    order = sorted(groups, key=lambda group: (-sum(groups[group].values()), group))
    assigned: dict[float, int] = {}
    for number, group in enumerate(order):
        empty = [index for index, known in enumerate(bins) if not known.num_rows]
        allowed = empty if len(order) - number <= len(empty) else range(len(bins))
        best = min(allowed, key=lambda index: bins[index].cost(groups[group]))
        bins[best].add(groups[group])
        assigned[group] = best
    return assigned


class _Bin:
    """Rows of each class in a bin."""

    def __init__(self, share: float, totals: Counter[str]) -> None:
        self._share, self._totals, self._num_total = share, totals, totals.total()
        self._counts: Counter[str] = Counter()
        self.num_rows = 0

    def add(self, group: Mapping[str, int]) -> None:
        """Add the rows of a group."""
        self._counts.update(group)
        self.num_rows += sum(group.values())

    def cost(self, group: Mapping[str, int]) -> float:
        """Return the change of the squared distance from the share, of the rows and on average of the classes."""
        of_rows = self._change(self.num_rows, sum(group.values()), self._num_total)
        of_classes = (self._change(self._counts[c], count, self._totals[c]) for c, count in group.items())
        return (of_rows + sum(of_classes) / len(self._totals)) / self._share

    def _change(self, present: int, added: int, total: int) -> float:
        part = added / total
        return part * (2 * (present / total - self._share) + part)
