"""The local cluster from the perspective of its drivers."""

from pathlib import Path

import listening
import pytest

from rayfuse.cluster import local
from rayfuse.cluster.local import LocalCluster
from rayfuse.errors import UnavailableError
from rayfuse.serving.dashboard import connect


def test_a_driver_with_its_environment_connects(ray_cluster: LocalCluster) -> None:
    import ray

    with ray.init(log_to_driver=False, logging_level="ERROR"):
        assert ray.get(ray.remote(ray.util.get_node_ip_address).remote()) == "127.0.0.1"


def test_the_cluster_listens_on_loopback_only(ray_cluster: LocalCluster) -> None:
    found = listening.addresses(local.processes(ray_cluster))
    assert {"gcs_server", "raylet"} <= {name for name, _ in found}
    assert not listening.beyond_loopback(found)


def test_starting_again_returns_the_running_cluster(ray_cluster: LocalCluster, tmp_path: Path) -> None:
    local.write_state(tmp_path, ray_cluster)
    assert local.start(tmp_path) == ray_cluster


def test_its_dashboard_is_found_by_its_address(ray_cluster: LocalCluster) -> None:
    found = connect(ray_cluster.address)
    assert found.url == ray_cluster.dashboard_url
    assert found.total_resources()["CPU"] == 4


def test_a_wrong_token_is_rejected(ray_cluster: LocalCluster) -> None:
    with pytest.raises(UnavailableError, match="authentication to Ray at"):
        connect(ray_cluster.dashboard_url, {"RAY_AUTH_TOKEN": "wrong"}).serve_details()


def test_sockets_and_logs_are_private(ray_cluster: LocalCluster) -> None:
    folder = Path(ray_cluster.temp_dir)
    assert folder.stat().st_mode & 0o077 == 0
    assert list(folder.rglob("raylet.out"))
