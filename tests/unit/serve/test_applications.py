"""What is decided from Serve's status, without Serve."""

from typing import Any

import pytest

from rayfuse.errors import ResourceError
from rayfuse.registry.fetching import Source
from rayfuse.serve import applications
from rayfuse.serve.settings import Settings, digest
from rayfuse.spec.load import check
from rayfuse.spec.service import Service

SOURCE = Source("models:/tiny/3", "http://mlflow:5000", "tiny", 3)
TRACE = """Deployment 'Endpoint' failed to start 1 times in a row. Error:
ray::ServeReplica:tiny:Endpoint.initialize_and_get_metadata() (pid=1)
  File "x.py", line 1, in __init__
rayfuse.errors.DataError: /m: not a model folder: [Errno 2] No such file
"""


def service(**options: Any) -> Service:
    return check({"kind": "service", "name": "tiny", "model": "/m", **options}, Service, "x.yaml")


def serving(*services: Service, host: str = "127.0.0.1", port: int = 8000, **found: Any) -> dict[str, Any]:
    """Serve's status with these services running."""
    return {
        "http_options": {"host": host, "port": port},
        "proxies": {"node": {}},
        "applications": {
            one.name: {
                "status": "RUNNING",
                "route_prefix": one.prefix,
                "deployed_app_config": applications.application(one, SOURCE),
                "deployments": {
                    "Endpoint": {
                        "deployment_config": {"user_config": Settings.of(one, "tiny", 3).dump()},
                        "replicas": [{"state": "RUNNING"}],
                        "required_resources": {"CPU": one.replicas.cpus},
                        "target_num_replicas": one.replicas.min,
                    }
                },
                **found,
            }
            for one in services
        },
    }


def test_keys_are_kept_as_hashes_alone() -> None:
    config = applications.application(service(auth={"keys": "k-one,k-two"}), SOURCE)
    assert "k-one" not in repr(config)
    kept = Settings.load(config["deployments"][0]["user_config"])
    assert kept.keys == (digest("k-one"), digest("k-two"))
    assert kept.admits("k-two")
    assert not kept.admits("k-three")


def test_the_spec_becomes_serves_own_limits() -> None:
    wanted = service(
        batching={"max_size": 8, "wait": "2ms"},
        limits={"queue": 20, "timeout": "3s", "body": "1KB"},
        replicas={"min": 1, "max": 4, "target_ongoing": 5, "cpus": 2.5},
    )
    application = applications.application(wanted, SOURCE)
    [deployment] = application["deployments"]
    assert deployment["max_ongoing_requests"] == deployment["max_queued_requests"] > 28
    assert deployment["backpressure_config"]["retry_after_s"] == 1
    assert deployment["autoscaling_config"] == {
        "min_replicas": 1,
        "max_replicas": 4,
        "target_ongoing_requests": 5.0,
    }
    assert application["args"]["threads"] == 2
    settings = Settings.load(deployment["user_config"])
    assert (settings.max_size, settings.wait, settings.timeout, settings.body) == (8, 0.002, 3.0, 1000)


def test_a_fixed_number_of_replicas_does_not_scale() -> None:
    [deployment] = applications.application(service(replicas={"min": 2, "max": 2}), SOURCE)["deployments"]
    assert deployment["num_replicas"] == 2
    assert "autoscaling_config" not in deployment


def test_without_keys_it_listens_on_loopback() -> None:
    assert applications.host_of(service()) == "127.0.0.1"
    assert applications.host_of(service(auth={"keys": "k"})) == "0.0.0.0"


def test_the_same_place_needs_no_move() -> None:
    assert not applications.must_move(service(), {"applications": {}})
    assert not applications.must_move(service(), serving(service(name="other")))
    assert not applications.must_move(service(), serving(service(name="other"), host="0.0.0.0"))


def test_alone_it_moves_serve() -> None:
    assert applications.must_move(service(port=8001), serving(service()))
    assert applications.must_move(service(auth={"keys": "k"}), serving(service()))
    assert applications.must_move(service(port=8001), serving(service(name="other"), status="DELETING"))


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"port": 8001}, r"port: 8001, but this cluster serves other on 8000.*--set port=8000"),
        ({"auth": {"keys": "k"}}, "auth.keys: tiny has keys"),
        ({"route": "/other"}, "route: /other is the route of other"),
    ],
)
def test_another_endpoint_in_the_way_is_named(wanted: dict[str, Any], says: str) -> None:
    with pytest.raises(ResourceError, match=says):
        applications.must_move(service(**wanted), serving(service(name="other")))


def test_room_is_what_others_leave() -> None:
    busy = serving(service(name="other", replicas={"min": 2, "max": 2}), service())
    left = applications.free({"CPU": 4.0}, busy, without="tiny")
    assert left == {"CPU": 2.0, "GPU": 0.0}
    assert applications.has_room(service(), left, running=1)
    assert not applications.has_room(service(), {"CPU": 1.0, "GPU": 0.0}, running=1)
    with pytest.raises(ResourceError, match=r"replicas: 3 × 1 CPUs, but this cluster has 2 to give"):
        applications.has_room(service(replicas={"min": 3, "max": 3}), left, running=1)
    with pytest.raises(ResourceError, match="GPUs"):
        applications.has_room(service(replicas={"gpus": 1}), left, running=0)


def test_an_application_of_somebody_else_is_no_endpoint() -> None:
    status = serving(service())
    assert applications.endpoint("tiny", status, "h", "http://h:8265") is not None
    status["applications"]["tiny"]["deployed_app_config"]["import_path"] = "theirs:app"
    assert applications.endpoint("tiny", status, "h", "http://h:8265") is None


def test_an_endpoint_is_reached_by_the_clusters_name_where_it_listens_everywhere() -> None:
    found = applications.endpoint(
        "tiny", serving(service(), host="0.0.0.0"), "head.example", "http://head.example"
    )
    assert found is not None
    assert (found.predict, found.replicas) == ("http://head.example:8000/tiny/predict", 1)


def test_the_reason_is_the_last_exception() -> None:
    assert applications.reason(TRACE) == "/m: not a model folder: [Errno 2] No such file"
    assert applications.reason("x\nImportError: no torch\n") == "ImportError: no torch"
    assert applications.reason("waiting for room") == "waiting for room"
    assert applications.reason("") == "Ray gives no reason"


def test_a_failed_endpoint_says_why() -> None:
    found = applications.endpoint(
        "tiny", serving(service(), status="DEPLOY_FAILED", message=TRACE), "h", "http://h"
    )
    assert found is not None
    assert found.message == "/m: not a model folder: [Errno 2] No such file"
