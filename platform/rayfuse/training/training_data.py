"""Training and evaluation rows of a rank, prepared for collating into batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rayfuse.data.collate import Batch, collate
from rayfuse.data.rows import Row
from rayfuse.data.sampler import BatchSampler, SampleCache
from rayfuse.data.samples import Preprocessor
from rayfuse.modalities import Modality
from rayfuse.spec.job import Job
from rayfuse.training.distributed import DistributedContext
from rayfuse.training.feature_cache import LogFn, encode_frozen_inputs
from rayfuse.training.step_metrics import StepPosition


@dataclass(frozen=True)
class TrainingData:
    """Samples of all splits, and the order in which training visits them."""

    modalities: Mapping[str, Modality]
    """By input; with cached features where the encoder is frozen."""
    sample_caches: Mapping[str, SampleCache]
    """By split: `train`, `validation` and possibly `test`."""
    sampler: BatchSampler
    """Order of the training rows."""

    @classmethod
    def prepare(
        cls,
        job: Job,
        splits: Mapping[str, Sequence[Row]],
        context: DistributedContext,
        precision: str,
        log: LogFn,
    ) -> "TrainingData":
        """Encode the inputs of frozen encoders and return the samples of all splits; every rank must call it.

        Builds and drops encoders, so set the seed of a model's weights after it.
        """
        encoded = encode_frozen_inputs(job, splits, context, precision, log)
        preprocessor = Preprocessor(job.inputs, job.tasks, encoded.modalities)
        caches = {
            name: SampleCache(rows, preprocessor, job.compute.sample_cache, encoded.value_indices[name])
            for name, rows in splits.items()
        }
        return cls(preprocessor.modalities, caches, BatchSampler.from_job(splits["train"], job))

    def empty_batch(self) -> Batch:
        """Return a batch of one filler sample with dummy features for every input."""
        return collate([], self.modalities, add_dummies=True)

    def row_origins(self, position: StepPosition, ranks: Sequence[int], world_size: int) -> list[str]:
        """Return FILE:LINE of the rows that some ranks trained on at a step."""
        rows = self.sample_caches["train"].rows
        return [
            rows[number].origin
            for rank in ranks
            for numbers in self.sampler.step_indices(position.epoch, position.step_in_epoch, rank, world_size)
            for number in numbers
        ]
