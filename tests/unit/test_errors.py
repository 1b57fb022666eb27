"""Exceptions pickle with their fields, and have fixed exit codes."""

import pickle

import pytest

from rayfuse import errors

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]


def test_an_invalid_input_has_its_fields_in_another_process() -> None:
    error = errors.MissingInputError("the list is empty").for_input("items").in_row(3)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is errors.MissingInputError
    assert (copy.reason, copy.input_name, copy.row) == ("the list is empty", "items", 3)
    assert str(copy) == "row 3: items: the list is empty"


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_pickles(kind: type[errors.RayfuseError]) -> None:
    copy = pickle.loads(pickle.dumps(kind("value, rule and remedy")))
    assert type(copy) is kind
    assert str(copy) == "value, rule and remedy"


def test_exit_codes() -> None:
    codes = {kind.__name__: kind.exit_code for kind in KINDS if kind.exit_code != 1}
    assert codes == {
        "SpecError": 2,
        "GateRejectedError": 3,
        "UnavailableError": 4,
        "RunInterruptedError": 130,
    }
