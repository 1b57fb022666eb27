"""Embeddings of one input of a retrieval task."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from rayfuse.api.models import FolderModel, Model, ModelLoader, Prediction
from rayfuse.errors import SpecError
from rayfuse.spec.error_messages import suggest_nearest

if TYPE_CHECKING:
    from rayfuse.data.rows import InvalidRow, Row


class EmbeddingModel(FolderModel):
    """A model that predicts the embedding of one input of a retrieval task, from rows that need no other input."""

    def __init__(self, model: FolderModel, task: str, input_name: str) -> None:
        """Take over a model, which reads no other input from then on."""
        from rayfuse.model.side_embedder import SideEmbedder

        self._embedder = SideEmbedder(model.predictor, task, input_name)
        super().__init__(model.predictor, model.name, None, model.loader())
        self.version = model.version
        self.task, self.input_name = task, input_name
        self.tasks = {task: self.tasks[task]}

    def predict_data(
        self, rows: "Sequence[Row | InvalidRow]", batch_size: int, concurrency: int | None = None
    ) -> "list[Prediction | InvalidRow]":
        """Return {"outputs": {task: {"embedding": vector}}, "inputs_used": [input]} for each row that can be used."""
        found = super().predict_data(rows, batch_size)
        return [self._to_prediction(one) if isinstance(one, dict) else one for one in found]

    def loader(self) -> "EmbeddingLoader":
        source = {field.name: getattr(self._source, field.name) for field in fields(ModelLoader)}
        return EmbeddingLoader(**source, task=self.task, input_name=self.input_name)

    @property
    def identity(self) -> dict[str, Any]:
        return {**super().identity, "task": self.task, "input": self.input_name}

    def _to_prediction(self, prediction: Prediction) -> Prediction:
        return {**prediction, "outputs": {self.task: {"embedding": self._embedder.to_passage(prediction)}}}


@dataclass(frozen=True, repr=False)
class EmbeddingLoader(ModelLoader):
    """Arguments of an EmbeddingModel for other processes."""

    task: str = ""
    """The retrieval task."""
    input_name: str = ""
    """Its input that is embedded."""

    def load(self) -> Model:
        """Load the model."""
        model = super().load()
        assert isinstance(model, FolderModel), "an endpoint publishes no job"
        return EmbeddingModel(model, self.task, self.input_name)


def choose_task(model: Model, task: str | None) -> str:
    """Return the retrieval task of a model, which `task` names if there are several.

    Raises SpecError if there is none, or not this one.
    """
    tasks = [name for name, kind in model.tasks.items() if kind == "retrieval"]
    if not tasks:
        raise SpecError(
            f"{model.name} has no retrieval task; train one with `tasks: {{find: {{type: retrieval}}}}`"
        )
    if task is None:
        if len(tasks) > 1:
            raise SpecError(
                f"{model.name} has several retrieval tasks: {', '.join(tasks)}; choose one with --task"
            )
        return tasks[0]
    if task not in tasks:
        raise SpecError(f"task: {task}: not a retrieval task of {model.name}; {suggest_nearest(task, tasks)}")
    return task
