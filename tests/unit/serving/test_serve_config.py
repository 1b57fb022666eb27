"""Ray Serve's configuration and the interpretation of its status, without Serve."""

import inspect
import json
import re
from typing import Any

import pytest

from rayfuse.errors import ResourceError, SpecError
from rayfuse.ray_http import FAILED_SERVE_STATUSES
from rayfuse.registry.download import ModelSource
from rayfuse.serving import serve_config
from rayfuse.serving.settings import Settings, hash_api_key
from rayfuse.spec.load import validate_spec
from rayfuse.spec.service import Service

SOURCE = ModelSource("models:/tiny/3", "http://mlflow:5000", "tiny", 3)
TRACE = """Deployment 'Endpoint' failed to start 1 times in a row. Error:
ray::ServeReplica:tiny:Endpoint.initialize_and_get_metadata() (pid=1)
  File "x.py", line 1, in __init__
rayfuse.errors.DataError: /m: not a model folder: [Errno 2] No such file
"""


def service(**options: Any) -> Service:
    return validate_spec({"kind": "service", "name": "tiny", "model": "/m", **options}, Service, "x.yaml")


def serving(*services: Service, host: str = "127.0.0.1", port: int = 8000, **found: Any) -> dict[str, Any]:
    """Return Serve's details with these services running."""
    return {
        "http_options": {"host": host, "port": port},
        "proxies": {"node": {}},
        "applications": {
            one.name: {
                "status": "RUNNING",
                "route_prefix": one.route_prefix,
                "deployed_app_config": serve_config.build_application(one, SOURCE),
                "deployments": {
                    "Endpoint": {
                        "deployment_config": {"user_config": Settings.from_service(one, "tiny", 3).dump()},
                        "replicas": [{"state": "RUNNING"}],
                        "required_resources": {"CPU": one.replicas.num_cpus},
                        "target_num_replicas": one.replicas.min,
                    }
                },
                **found,
            }
            for one in services
        },
    }


def test_origins_are_settings() -> None:
    config = serve_config.build_application(service(cors={"origins": "https://a.example.com, *"}), SOURCE)
    stored = json.loads(json.dumps(config["deployments"][0]["user_config"]))
    assert Settings.load(stored).cors_origins == ("https://a.example.com", "*")
    del stored["cors_origins"]  # an endpoint of an older version
    assert Settings.load(stored).cors_origins == ()
    for origin in ("https://a.example.com/", "a.example.com", "https://A.example.com", "null"):
        with pytest.raises(SpecError, match="is not an origin; write a scheme and a host in lower case"):
            service(cors={"origins": [origin]})


def test_only_hashes_of_keys_are_stored() -> None:
    config = serve_config.build_application(
        service(auth={"keys": "first-secret-key,other-secret-key"}), SOURCE
    )
    assert "first-secret-key" not in repr(config)
    kept = Settings.load(config["deployments"][0]["user_config"])
    assert kept.keys == (hash_api_key("first-secret-key"), hash_api_key("other-secret-key"))
    assert kept.is_valid_key("other-secret-key")
    assert not kept.is_valid_key("k-three")


def test_limits_are_set_in_serves_configuration() -> None:
    wanted = service(
        batching={"max_batch_size": 8, "batch_wait_timeout": "2ms"},
        limits={"max_queued_requests": 20, "request_timeout": "3s", "max_body_size": "1KB"},
        replicas={"min": 1, "max": 4, "target_ongoing_requests": 5, "num_cpus": 2.5},
    )
    application = serve_config.build_application(wanted, SOURCE)
    [deployment] = application["deployments"]
    assert deployment["max_ongoing_requests"] == deployment["max_queued_requests"] > 28
    assert deployment["backpressure_config"]["retry_after_s"] == 1
    assert deployment["autoscaling_config"] == {
        "min_replicas": 1,
        "max_replicas": 4,
        "target_ongoing_requests": 5.0,
    }
    assert application["args"]["num_threads"] == 2
    settings = Settings.load(deployment["user_config"])
    assert (
        settings.max_batch_size,
        settings.batch_wait_timeout,
        settings.request_timeout,
        settings.max_body_size,
    ) == (8, 0.002, 3.0, 1000)


def test_a_fixed_number_of_replicas_does_not_scale() -> None:
    [deployment] = serve_config.build_application(service(replicas={"min": 2, "max": 2}), SOURCE)[
        "deployments"
    ]
    assert deployment["num_replicas"] == 2
    assert "autoscaling_config" not in deployment


def test_without_keys_it_listens_on_loopback() -> None:
    assert serve_config.listen_host(service()) == "127.0.0.1"
    assert serve_config.listen_host(service(auth={"keys": "a-key-that-is-secret"})) == "0.0.0.0"


def test_the_same_address_needs_no_restart() -> None:
    assert not serve_config.must_restart_serve(service(), {"applications": {}})
    assert not serve_config.must_restart_serve(service(), serving(service(name="other")))
    assert not serve_config.must_restart_serve(service(), serving(service(name="other"), host="0.0.0.0"))


def test_a_serve_that_the_caller_started_has_the_default_address() -> None:
    started = {**serving(service(name="other")), "http_options": {}}
    assert serve_config.listen_address(started) == ("127.0.0.1", 8000)
    assert serve_config.listen_address({**started, "http_options": {"port": 9000}}) == ("127.0.0.1", 9000)
    assert serve_config.listen_address({**started, "proxies": {}}) is None
    status = serve_config.endpoint_status("other", started, "head", "http://head:8265")
    assert status
    assert status.url == "http://127.0.0.1:8000/other"


def test_serve_restarts_for_a_new_address_without_other_applications() -> None:
    assert serve_config.must_restart_serve(service(port=8001), serving(service()))
    assert serve_config.must_restart_serve(service(auth={"keys": "a-key-that-is-secret"}), serving(service()))
    assert serve_config.must_restart_serve(
        service(port=8001), serving(service(name="other"), status="DELETING")
    )


@pytest.mark.parametrize(
    ("wanted", "expected_message"),
    [
        (
            {"port": 8001},
            r"port: 8001 differs from port 8000, on which this cluster serves other.*--set port=8000",
        ),
        ({"auth": {"keys": "a-key-that-is-secret"}}, "auth.keys: tiny has API keys"),
        ({"route": "/other"}, "route: /other is in use by other"),
    ],
)
def test_an_address_conflict_names_the_endpoint(wanted: dict[str, Any], expected_message: str) -> None:
    with pytest.raises(ResourceError, match=expected_message):
        serve_config.must_restart_serve(service(**wanted), serving(service(name="other")))


def test_free_resources_exclude_other_applications() -> None:
    busy = serving(service(name="other", replicas={"min": 2, "max": 2}), service())
    left = serve_config.available_resources({"CPU": 4.0}, busy, exclude="tiny")
    assert left == {"CPU": 2.0, "GPU": 0.0}
    assert serve_config.can_surge(service(), left, running=1)
    assert not serve_config.can_surge(service(), {"CPU": 1.0, "GPU": 0.0}, running=1)
    with pytest.raises(ResourceError, match=r"replicas: 3 × 1 CPUs exceed the 2 that are free"):
        serve_config.can_surge(service(replicas={"min": 3, "max": 3}), left, running=1)
    with pytest.raises(ResourceError, match="GPUs"):
        serve_config.can_surge(service(replicas={"num_gpus": 1}), left, running=0)


def test_other_applications_are_not_endpoints() -> None:
    status = serving(service())
    assert serve_config.endpoint_status("tiny", status, "h", "http://h:8265") is not None
    status["applications"]["tiny"]["deployed_app_config"]["import_path"] = "theirs:app"
    assert serve_config.endpoint_status("tiny", status, "h", "http://h:8265") is None


def test_an_endpoint_is_reached_by_the_clusters_name_where_it_listens_everywhere() -> None:
    found = serve_config.endpoint_status(
        "tiny", serving(service(), host="0.0.0.0"), "head.example", "http://head.example"
    )
    assert found is not None
    assert (found.predict_url, found.replicas) == ("http://head.example:8000/tiny/predict", 1)


def test_the_reason_is_the_last_exception() -> None:
    assert serve_config.failure_reason({"message": TRACE}) == "/m: not a model folder: [Errno 2] No such file"
    assert serve_config.failure_reason({"message": "x\nImportError: no torch\n"}) == "ImportError: no torch"
    assert serve_config.failure_reason({"message": "no exception"}) == "no exception"
    assert serve_config.failure_reason({}) == "Ray Serve gives no reason"


def test_the_message_of_pending_replicas_is_ray_serves() -> None:
    from ray.serve._private import deployment_state

    source = inspect.getsource(deployment_state)
    [start] = re.findall(r'f"have taken more than \{SLOW_STARTUP_WARNING_S\}s to be scheduled\. "', source)
    message = f"Deployment 'Endpoint' has 1 replicas that {start[2:-1]}"
    application = {"message": "", "deployments": {"Endpoint": {"message": message}}}
    assert serve_config.is_unschedulable(application)
    assert not serve_config.is_unschedulable({"message": "", "deployments": {"Endpoint": {"message": "x"}}})


def test_failed_statuses_are_ray_serves() -> None:
    from ray.serve.schema import ApplicationStatus

    assert set(FAILED_SERVE_STATUSES) <= {status.value for status in ApplicationStatus}


def test_a_failed_endpoint_has_its_reason() -> None:
    found = serve_config.endpoint_status(
        "tiny", serving(service(), status="DEPLOY_FAILED", message=TRACE), "h", "http://h"
    )
    assert found is not None
    assert found.message == "/m: not a model folder: [Errno 2] No such file"


def test_a_variable_of_a_service_built_in_python_is_no_key() -> None:
    with pytest.raises(SpecError, match=r"tiny: auth\.keys: variables are resolved in spec files only"):
        serve_config.build_application(service(auth={"keys": "${RAYFUSE_API_KEYS:-}"}), SOURCE)
