"""Whole groups in bins that have their share of the rows and of each class."""

from rayfuse.data.group_balance import assign_groups


def test_no_bin_of_groups_is_empty() -> None:
    groups = {0.1: {"a": 900}, 0.2: {"a": 1}, 0.3: {"b": 1}}
    assert sorted(assign_groups(groups, [0.9, 0.05, 0.05]).values()) == [0, 1, 2]


def test_bins_have_their_share_of_the_rows_and_of_each_class() -> None:
    groups = {float(i): {"a": 1 + i % 7, "b": i % 3} for i in range(300)}
    shares = [0.7, 0.1, 0.2]
    found = [{"a": 0, "b": 0} for _ in shares]
    for group, index in assign_groups(groups, shares).items():
        for name, count in groups[group].items():
            found[index][name] += count
    for name in ("a", "b"):
        total = sum(counts[name] for counts in found)
        assert all(
            abs(counts[name] / total - share) < 0.01 for counts, share in zip(found, shares, strict=True)
        )
