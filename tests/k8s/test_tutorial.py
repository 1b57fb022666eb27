"""The tutorial about Kubernetes runs as it is written, against a real API server."""

from pathlib import Path

from doc_pages import run_page

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "kubernetes.md"


def test_the_page_runs(kubeconfig: Path, tmp_path: Path) -> None:
    run_page(PAGE, tmp_path, {"KUBECONFIG": str(kubeconfig)})
