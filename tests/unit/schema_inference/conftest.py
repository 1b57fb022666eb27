"""Kinds of columns from their values alone."""

from collections.abc import Callable
from typing import Any

import pytest
from column_samples import make_sample

from rayfuse.schema_inference.column import Column
from rayfuse.schema_inference.kinds import infer_column

Infer = Callable[..., Column]


@pytest.fixture
def infer() -> Infer:
    """Return a function that infers the kind of a column from its values."""

    def infer_values(values: list[Any], name: str = "value") -> Column:
        return infer_column(name, make_sample({name: values}))

    return infer_values
