"""Whatever is sent to an endpoint of a model with every kind of input gets an answer or a problem, and costs no memory."""

from typing import Any

import hostile_requests
import pytest
import schemathesis
from endpoints import serve_in_thread
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

pytestmark = pytest.mark.slow
LONG = settings(max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def test_mutated_bodies() -> None:
    assert hostile_requests.run(bodies=10_000, seed=1) == 0


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_requests_by_the_schema(mode: schemathesis.GenerationMode) -> None:
    with hostile_requests.loaded_model() as (predictor, _), serve_in_thread(predictor, "/model") as url:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        for operation in (each.ok() for each in schema.get_all_operations()):
            if operation.body or mode is schemathesis.GenerationMode.POSITIVE:
                check_operation(operation, mode)


def check_operation(operation: Any, mode: schemathesis.GenerationMode) -> None:
    @LONG
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        excluded = [positive_data_acceptance]  # media must also be readable
        if "multipart" in str(case.media_type):
            excluded.append(negative_data_rejection)  # whatever a part holds may be a text
        case.call_and_validate(excluded_checks=excluded)

    check()
