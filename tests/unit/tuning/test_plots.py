from pathlib import Path

from PIL import Image

from rayfuse.tuning.leaderboard import Leaderboard
from rayfuse.tuning.plots import save_plots


def test_each_searched_parameter_gets_a_plot(board: Leaderboard, tmp_path: Path) -> None:
    paths = save_plots(tmp_path / "plots", board)
    assert [path.name for path in paths] == ["fusion.png", "fusion.heads.png", "train.optimizer.lr.png"]
    for path in paths:
        with Image.open(path) as image:
            assert len(image.convert("RGB").getcolors(1 << 20) or []) > 20
