"""Conventions inside a Ray worker that was started in the repository's root."""

from pathlib import Path

import pytest

from rayfuse.cluster.local import LocalCluster

pytestmark = pytest.mark.ray


def test_platform_is_the_standard_library_in_a_worker(
    ray_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.chdir(Path(__file__).parents[2])
    ray.init(log_to_driver=False, ignore_reinit_error=True)

    @ray.remote(num_cpus=0)
    def where() -> tuple[str, str]:
        import platform

        return str(platform.__file__), platform.system()

    file, system = ray.get(where.remote())
    assert Path(file).name == "platform.py"
    assert "rayfuse" not in file
    assert system == "Linux"
