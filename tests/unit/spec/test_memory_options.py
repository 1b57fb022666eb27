"""Combinations of a sweep that differ in memory."""

from pathlib import Path

import tiny_sweeps

from rayfuse.spec.memory_options import MAX_COMBINATIONS, memory_combinations


def test_one_of_each_size_the_largest_first(tmp_path: Path) -> None:
    found = memory_combinations(tiny_sweeps.make_space(tmp_path, {"type": "random", "trials": 1}))
    sizes = [(values["fusion"]["type"], values.get("fusion.heads"), values["align.dim"]) for values in found]
    assert len(sizes) == len(set(sizes)) == 8
    assert (sizes[0][2], sizes[-1][2]) == (16, 8)


def test_the_largest_of_many(tmp_path: Path) -> None:
    space = {
        "align.dim": {"choice": [8, 16, 32, 64, 128, 256, 512]},
        "fusion": {"choice": [{"type": "concat", "hidden": 8 * size} for size in range(1, 9)]},
    }
    found = memory_combinations(tiny_sweeps.make_space(tmp_path, {"type": "random", "trials": 1}, space))
    assert len(found) == MAX_COMBINATIONS
    assert found[0] == {"align.dim": 512, "fusion": {"type": "concat", "hidden": 64}}
