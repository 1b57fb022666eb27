"""Commands in processes whose encodings are not UTF-8."""

import os
import subprocess
import sys

import pytest

COMMAND = [sys.executable, "-c", "import sys; from rayfuse.cli import main; sys.exit(main())"]
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*COMMAND, *arguments], env={**os.environ, **environment}, capture_output=True)


def test_a_python_that_encodes_file_names_as_ascii_is_rejected_with_the_remedy() -> None:
    done = run("schema", "job", **ASCII)
    assert done.returncode == 2
    assert done.stdout == b""
    assert done.stderr.startswith(b"error: Python encodes file names and text files as ascii here")
    assert b"PYTHONUTF8=1" in done.stderr


@pytest.mark.parametrize("environment", [ASCII, {"PYTHONIOENCODING": "ascii"}])
def test_help_is_printed_whatever_the_encoding(environment: dict[str, str]) -> None:
    done = run("--help", **environment)
    assert done.returncode == 0
    assert b"Commands:" in done.stdout


def test_output_that_its_encoding_lacks_is_escaped() -> None:
    done = run("train", "/tmp/übung.yaml", PYTHONUTF8="1", PYTHONIOENCODING="ascii")
    assert done.returncode == 2
    assert done.stderr.startswith(rb"error: /tmp/\xfcbung.yaml")
