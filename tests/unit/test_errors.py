"""Errors cross processes, and their exit codes are a promise to scripts."""

import pickle

import pytest

from rayfuse import errors

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_survives_the_way_to_another_process(kind: type[errors.RayfuseError]) -> None:
    there_and_back = pickle.loads(pickle.dumps(kind("what, why, and what to do")))
    assert type(there_and_back) is kind
    assert str(there_and_back) == "what, why, and what to do"


def test_exit_codes() -> None:
    codes = {kind.__name__: kind.exit_code for kind in KINDS if kind.exit_code != 1}
    assert codes == {"SpecError": 2, "GateRefused": 3, "NotReachable": 4, "Interrupted": 130}
