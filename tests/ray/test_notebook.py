"""A notebook: a real kernel with a Ray of its own trains, shows progress, and is interrupted."""

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from doc_pages import blocks
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

pytestmark = pytest.mark.ray
TIMEOUT = 600
SETUP = """
import pandas as pd, ray, rayfuse
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
class Counter:
    def ping(self): return "alive"
counter = ray.remote(num_cpus=0)(Counter).remote()
frame = pd.DataFrame({"text": ["good", "bad"] * 100, "price": range(200), "stars": [5, 1] * 100})
job = rayfuse.Job(
    name="notebook", data={"train": frame}, fusion={"type": "concat"}, output={"storage": "runs"},
    inputs={
        "text": {"type": "text", "encoder": {"type": "conv"}},
        "facts": {"type": "tabular", "columns": ["price"], "encoder": {"type": "mlp"}},
    },
    tasks={"stars": {"type": "classification"}},
    train={"epochs": 3, "batch_size": 32},
)
"""
IS_UNTOUCHED = 'assert ray.get(counter.ping.remote(), timeout=60) == "alive"'


class Notebook:
    """A kernel that runs cells."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self.manager, self.client = manager, client
        self.messages: list[dict[str, Any]] = []

    def run(self, code: str) -> dict[str, Any]:
        """Run a cell; return its reply, and collect its outputs in `messages`."""
        self.messages = []
        reply: dict[str, Any] = self.client.execute_interactive(
            code, timeout=TIMEOUT, output_hook=self.messages.append
        )["content"]
        return reply

    def run_ok(self, code: str) -> None:
        """Run a cell that must not fail."""
        reply = self.run(code)
        assert reply["status"] == "ok", "\n".join(reply.get("traceback", []))

    def text(self) -> str:
        """Return the text of all outputs of the last cell."""
        contents = [message["content"] for message in self.messages]
        return "".join(
            content.get("text", "") + content.get("data", {}).get("text/plain", "") for content in contents
        )

    def kinds(self) -> set[str]:
        """Return the types of the messages of the last cell."""
        return {message["msg_type"] for message in self.messages}

    def interrupt_when(self, pattern: str) -> None:
        """Interrupt the kernel, as the stop button does, once the running cell has printed `pattern`."""

        def watch() -> None:
            deadline = time.monotonic() + TIMEOUT
            while not re.search(pattern, self.text()) and time.monotonic() < deadline:
                time.sleep(0.1)
            self.manager.interrupt_kernel()

        threading.Thread(target=watch, daemon=True).start()


@contextmanager
def open_notebook(folder: Path) -> Iterator[Notebook]:
    """Start a kernel in a folder, without the settings of Ray and MLflow of this process."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "RAYFUSE_", "MLFLOW_"))}
    home = {"HOME": str(folder), "IPYTHONDIR": str(folder / "ipython"), "RAY_TMPDIR": "/tmp/ray"}
    manager = KernelManager()
    manager.start_kernel(env={**variables, **home}, cwd=str(folder))
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=300)
        yield Notebook(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel()


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    with open_notebook(tmp_path_factory.mktemp("notebook")) as kernel:
        kernel.run_ok(SETUP)
        yield kernel
        kernel.run("ray.shutdown()")


@pytest.mark.slow  # tests/docs runs the same code
def test_the_quick_start_in_a_notebook(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "quickstart.md"
    make_rows, train, *_ = [block.code for block in blocks(page.read_text()) if "import" in block.code]
    with open_notebook(tmp_path) as kernel:
        kernel.run_ok(make_rows)
        kernel.run_ok(train)
        assert "'label': 'high'" in kernel.text()
        kernel.run_ok("import ray; assert not ray.is_initialized()")


def test_training_shows_progress_and_leaves_ray_alone(notebook: Notebook) -> None:
    notebook.run_ok("result = rayfuse.train(job)\nresult")
    assert "epoch  3  validation" in notebook.text()
    assert {"display_data", "update_display_data"} <= notebook.kinds()  # the live line
    tables = [message["content"].get("data", {}).get("text/html", "") for message in notebook.messages]
    assert any("stars/accuracy" in table for table in tables)
    notebook.run_ok(IS_UNTOUCHED)
    notebook.run_ok('assert result.metrics["stars/accuracy"] > 0.9')


def test_the_model_predicts_frames(notebook: Notebook) -> None:
    notebook.run_ok("predictions = result.load_model().predict(frame.head(4))")
    notebook.run_ok('assert list(predictions["stars/label"]) == [5, 1, 5, 1], predictions')


def test_an_interrupted_run_is_resumed_by_the_same_cell(notebook: Notebook) -> None:
    checkpoints = {"train.checkpoint.interval": 1, "train.checkpoint.interrupt_timeout": 300}
    long = f"rayfuse.train(job, **{ {'name': 'long', 'train.epochs': 40, **checkpoints} })"
    notebook.interrupt_when(r"epoch  2  validation")
    reply = notebook.run(long)
    assert reply["status"] == "error"
    assert reply["ename"] == "RunInterruptedError"
    assert "resume" in reply["evalue"]
    notebook.run_ok(IS_UNTOUCHED)
    notebook.run_ok(long)
    assert "resuming" in notebook.text()
    assert "epoch  1  validation" not in notebook.text()


def test_a_sweep_shows_a_table(notebook: Notebook) -> None:
    notebook.run_ok(
        'sweep = rayfuse.Sweep(name="s", job=job.override(**{"train.epochs": 1}), metric="stars/accuracy",\n'
        '    search={"type": "random", "trials": 2}, space={"train.optimizer.lr": {"choice": [1e-3, 1e-2]}})\n'
        "swept = rayfuse.tune(sweep)"
    )
    assert "update_display_data" in notebook.kinds()
    notebook.run_ok('assert list(swept.leaderboard["state"]) == ["finished", "finished"], swept.leaderboard')
    notebook.run_ok("assert swept.best.job.train.optimizer.lr in (1e-3, 1e-2)")
    notebook.run_ok(IS_UNTOUCHED)
