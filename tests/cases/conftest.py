"""Inputs of the cases: copies of `../shared/cases/NAME`, with the files that its `make.py` writes."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from shared_cases import MakeCase


@pytest.fixture(scope="module")
def make_case(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeCase:
    """Return a function that makes the input of a case."""

    def make(name: str, *arguments: str) -> Path:
        source = shared / "cases" / name
        if not source.is_dir():
            pytest.skip(f"{source} does not exist")
        folder = tmp_path_factory.mktemp(name)
        for path in source.iterdir():
            if path.suffix in (".py", ".yaml"):
                shutil.copyfile(path, folder / path.name)
        subprocess.run([sys.executable, "make.py", *arguments], cwd=folder, check=True)
        return folder

    return make
