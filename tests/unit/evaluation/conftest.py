from pathlib import Path

import pytest
import torch
from tiny_jobs import make_model_folder


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Use one thread: with more, models this small wait seconds for each other on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the rows of a tiny job in data/ and its trained model in model/."""
    folder = tmp_path_factory.mktemp("tiny")
    make_model_folder(folder)
    return folder
