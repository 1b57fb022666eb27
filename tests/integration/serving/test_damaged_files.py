"""Damaged files are decoded or rejected, within limits of memory and time; a few examples of `tests/fuzz`."""

from collections.abc import Iterator

import decoder_fuzz
import pytest
from hypothesis import HealthCheck, given, settings

from rayfuse.serving.decoders import Decoders

QUICK = settings(
    max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    found = decoder_fuzz.make_decoders()
    yield found
    found.close()


def test_the_originals_are_valid(decoders: Decoders) -> None:
    for name, content in decoder_fuzz.seeds():
        assert decoders.decode(name, content, decoder_fuzz.CpuBudget(10)), name


@QUICK
@given(file=decoder_fuzz.damaged_files())
def test_damaged_files(file: tuple[str, bytes], decoders: Decoders) -> None:
    decoder_fuzz.check_file(decoders, *file)
