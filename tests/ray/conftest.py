"""Fixtures of tests that need Ray."""

from ray_fixtures import outside_ray, ray_cluster

__all__ = ["outside_ray", "ray_cluster"]
