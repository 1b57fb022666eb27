"""Reports to Ray Train: the metrics of every epoch, and the checkpoints of the run by reference."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rayfuse.training.checkpoints import Checkpoint

if TYPE_CHECKING:
    import ray.train


class RayReporter:
    """Reporter of one rank to Ray Train. All ranks must call each method equally often.

    Ray Train's own list of checkpoints must name existing folders only: a restarted controller fails otherwise. Ray
    keeps the best N; our retention policy also keeps the last N, and breaks ties differently. So the epochs are
    reported without a checkpoint, and the checkpoints that the policy kept once training has ended.
    """

    def __init__(self, run: str) -> None:
        self.run = run

    def report(self, metrics: Mapping[str, float], checkpoint_url: str | None, epoch: int, step: int) -> None:
        """Report the validation metrics of an epoch, with the URL of its checkpoint, which may still be written."""
        reference = {} if checkpoint_url is None else {"checkpoint_url": checkpoint_url}
        self._report({"epoch": epoch, "step": step, **metrics}, reference)

    def report_checkpoints(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Report the validated checkpoints that the run has kept, the same on every rank, in the order of their steps."""
        for checkpoint in sorted(checkpoints, key=lambda c: c.step):
            metrics = {"step": checkpoint.step, **(checkpoint.metrics or {})}
            self._report(metrics, {"checkpoint_url": checkpoint.url}, checkpoint)

    def _report(
        self, metrics: Mapping[str, float], reference: Mapping[str, str], found: Checkpoint | None = None
    ) -> None:
        """Report without blocking: the controller takes one report per poll, and an epoch may be shorter."""
        import ray.train

        ray.train.report(
            {**_finite(metrics), **reference},
            checkpoint=self._by_reference(found) if found else None,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=_return_checkpoint,
            delete_local_checkpoint_after_upload=False,
        )

    def _by_reference(self, checkpoint: Checkpoint) -> "ray.train.Checkpoint":
        import ray.train

        storage = ray.train.get_context().get_storage()
        name = checkpoint.url.removeprefix(f"{self.run}/")
        return ray.train.Checkpoint(f"{storage.experiment_fs_path}/{name}", storage.storage_filesystem)


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return plain numbers; Ray's snapshot, which is JSON, turns NaN and infinity into null."""
    numbers = {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)}
    return {name: value if isinstance(value, int) else float(value) for name, value in numbers.items()}


def _return_checkpoint(checkpoint: "ray.train.Checkpoint", name: str) -> "ray.train.Checkpoint":
    """Upload nothing: the checkpoint is in the folder of the run already."""
    return checkpoint
