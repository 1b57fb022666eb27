import io

from tiny_sweeps import SPACE

from rayfuse.tuning.console import LiveTable, PlainLines, create_reporter, header, row
from rayfuse.tuning.leaderboard import Leaderboard


def test_parameter_columns_have_the_shortest_unique_end_of_their_path(board: Leaderboard) -> None:
    assert header(board) == [
        "trial", "state", "answer/accuracy", "epochs", "seconds", "fusion", "heads", "lr", "modality_dropout", "dim",
    ]  # fmt: skip
    assert row(board, board.ranked[1])[:8] == [3, "finished", "0.7000", 2, "0", "transformer", "2", "0.03"]
    assert list(SPACE) == list(board.space.sweep.space)


def test_a_terminal_shows_a_table_and_a_file_gets_lines(board: Leaderboard) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    live = create_reporter(print, terminal)
    assert isinstance(live, LiveTable)
    live.report(board)
    live.close()
    assert "4 of 6 trials ended, 1 running; best so far: trial 3" in terminal.getvalue()

    lines: list[str] = []
    plain = create_reporter(lines.append, io.StringIO())
    assert isinstance(plain, PlainLines)
    plain.report(board)
    plain.report(board)
    assert len(lines) == 5
    assert lines[0].split() == [
        "trial", "1", "finished", "epochs", "2", "answer/accuracy", "0.5000", "fusion=concat", "lr=0.01",
    ]  # fmt: skip
