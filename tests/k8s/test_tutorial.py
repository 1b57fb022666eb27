"""The tutorial about Kubernetes runs as it is written, against a real API server."""

from pathlib import Path

from doc_pages import run_page
from lightkube import Client
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Secret

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "kubernetes.md"


def test_the_page_runs(kubeconfig: Path, tmp_path: Path) -> None:
    with Client() as client:
        secret = Secret(metadata=ObjectMeta(name="rayfuse-credentials", namespace="default"))
        client.apply(secret, field_manager="test")
    run_page(PAGE, tmp_path, {"KUBECONFIG": str(kubeconfig)})
