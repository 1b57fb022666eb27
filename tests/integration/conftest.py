"""Fixtures of tests that run models, endpoints and databases in one process."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Use one thread: with more, models this small wait seconds for each other on a busy machine."""
    torch.set_num_threads(1)
