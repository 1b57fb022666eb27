"""What all ranks measure together: the outputs on a split's rows, as they are and for every subset of the inputs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from rayfuse.data.ahead import prefetch
from rayfuse.data.batches import Batch, SampleStore, collate
from rayfuse.modalities import Modality
from rayfuse.model.evaluation import (
    Outputs,
    Subset,
    calibrate,
    collect,
    details,
    remember,
    score,
    subset_name,
    subsets,
)
from rayfuse.model.explain import importance
from rayfuse.model.fused import heads_of
from rayfuse.spec.job import Job

_BATCH = 256


class Evaluator:
    """One rank's part of it; every rank must call each of its methods, and all get the same."""

    def __init__(
        self,
        job: Job,
        engine: Any,
        stores: Mapping[str, SampleStore],
        modalities: Mapping[str, Modality],
        rank: int,
        world: int,
        device: torch.device,
    ) -> None:
        self.job, self.engine, self.stores, self.modalities = job, engine, stores, modalities
        self.rank, self.world, self.device = rank, world, device
        self.heads = heads_of(engine.module)

    def metrics(self, split: str, chosen: Sequence[Subset] | None = None) -> list[dict[str, float]]:
        """Metrics over all rows of a split; for each of the subsets if given."""
        return [score(self.heads, self.job, outputs) for outputs in self.collect(split, chosen)]

    def collect(
        self, split: str, chosen: Sequence[Subset] | None = None, most: int | None = None
    ) -> list[Outputs]:
        """Outputs of the rows of a split, or of at most so many that are spread over it."""
        self.engine.eval()
        batches = (batch.to(self.device) for batch in prefetch(self.batches(split, most)))
        mine = collect(self.engine, self.heads, batches, chosen)
        if self.world == 1:
            return mine
        gathered: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(gathered, mine)
        merged = [Outputs() for _ in mine]
        for part in gathered:
            for into, outputs in zip(merged, part, strict=True):
                into.merge(outputs)
        return merged

    def of_best(self) -> dict[str, Any]:
        """The weights that are in place, once on the test rows, else on the validation rows: as they are, with every
        subset of the inputs, and what each input contributed.

        Before that they are calibrated on the validation rows; `fitted` holds the buffers that were set.
        """
        fitted = {**self._remember(), **calibrate(self.heads, *self.collect("validation"))}
        split = "test" if "test" in self.stores else "validation"
        inputs = list(self.job.inputs)
        chosen = subsets(inputs)
        as_they_are, *_ = self.collect(split)
        collected = self.collect(split, [*chosen, ()])  # without any input: what contributions start from
        by_inputs = [score(self.heads, self.job, outputs) for outputs in collected[:-1]]
        return {
            "split": split,
            "rows": len(self.stores[split]),
            "metrics": score(self.heads, self.job, as_they_are),
            "by_inputs": {
                subset_name(names): metrics for names, metrics in zip(chosen, by_inputs, strict=True)
            },
            "details": details(self.heads, as_they_are),
            "explain": importance(self.heads, inputs, dict(zip([*chosen, ()], collected, strict=True))),
            "fitted": fitted,
        }

    def _remember(self) -> dict[str, np.ndarray]:
        """Show training rows to the tasks that want some."""
        most = max(head.remembers for head in self.heads.values())
        return remember(self.heads, *self.collect("train", most=most)) if most else {}

    def batches(self, split: str, most: int | None = None, size: int = _BATCH) -> Iterator[Batch]:
        """This rank's part of a split's rows, or of at most so many, in as many batches of `size` rows as any rank
        needs."""
        store = self.stores[split]
        rows = range(0, len(store), -(-len(store) // most) if most else 1)
        longest = -(-len(rows) // self.world)
        mine = rows[self.rank :: self.world]
        for start in range(0, longest, size):
            numbers = mine[start : start + size]
            yield collate([store[n] for n in numbers], self.modalities, blanks=True)
