"""Check that the command line and the Makefile accept every command shown in the docs."""

import re
import shlex
from pathlib import Path

import click
import pytest

from rayfuse.cli import rayfuse

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("**/*.md"))]
BLOCK = re.compile(r"^```(?:bash|sh|shell|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
STARTS_OF_COMMANDS = ("&&", "||", "|", ";", "&")


def commands(document: Path) -> list[list[str]]:
    """Return the `rayfuse` and `make` commands in the shell blocks of a document, split into words."""
    found = []
    for block in BLOCK.findall(document.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            for words in split(line.removeprefix("$ ")):
                program, *arguments = words
                if Path(program).name in ("rayfuse", "make"):
                    found.append([Path(program).name, *arguments])
    return found


def split(line: str) -> list[list[str]]:
    """Split one line of shell into simple commands, without assignments, redirections and comments."""
    lexer = shlex.shlex(line.replace("2>&1", ""), posix=True, punctuation_chars="&|;<>")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    pieces: list[list[str]] = [[]]
    for word in lexer:
        if word in STARTS_OF_COMMANDS:
            pieces.append([])
        elif pieces[-1] or not re.match(r"^[A-Za-z_]\w*=", word):
            pieces[-1].append(word)
    for piece in pieces:
        for i, word in enumerate(piece):
            if set(word) <= set("<>"):
                del piece[i:]
                break
    return [piece for piece in pieces if piece]


SHOWN = [
    pytest.param(words, id=f"{document.name}: {' '.join(words)}")
    for document in DOCUMENTS
    for words in commands(document)
]


@pytest.mark.parametrize("words", SHOWN)
def test_documented_commands_are_valid(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    program, *arguments = words
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", Path("Makefile").read_text(), re.MULTILINE)
        assert {word for word in arguments if "=" not in word and not word.startswith("-")} <= set(targets)
        return
    # Groups find their commands and commands read their arguments, and then nothing runs.
    monkeypatch.setattr(click.Command, "invoke", lambda self, ctx: None)
    rayfuse.main(arguments, prog_name="rayfuse", standalone_mode=False)
    for word in arguments:
        if re.fullmatch(r"(jobs|tune|serve|k8s)/\S+\.ya?ml", word):
            assert Path(word).exists()


def test_words_of_a_line() -> None:
    assert split("A=1 rayfuse train jobs/x.yaml --set a.b='c d' 2>&1 > out.txt # note") == [
        ["rayfuse", "train", "jobs/x.yaml", "--set", "a.b=c d"]
    ]
    assert split("cd x && make test | tee log") == [["cd", "x"], ["make", "test"], ["tee", "log"]]
