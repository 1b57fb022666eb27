"""Damaged files are decoded or rejected, within limits of memory and time; random examples for an hour."""

from collections.abc import Iterator

import decoder_fuzz
import pytest
from hypothesis import HealthCheck, given, settings

from rayfuse.serving.decoders import Decoders

pytestmark = pytest.mark.slow
LONG = settings(max_examples=500_000, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    found = decoder_fuzz.make_decoders()
    yield found
    found.close()


@LONG
@given(file=decoder_fuzz.damaged_files())
def test_damaged_files(file: tuple[str, bytes], decoders: Decoders) -> None:
    decoder_fuzz.check_file(decoders, *file)
