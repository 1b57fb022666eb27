"""Vectors of queries, from one side of a retrieval task."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rayfuse.model.predictor import Predictor

_QUERY_HUBNESS = -0.5
"""Last number of a query's vector where the model corrects for hubs: times the last one of a passage, its hubness."""


class SideEmbedder:
    """The side of a retrieval task that one of its inputs is; rows need no other input."""

    def __init__(self, predictor: Predictor, task: str, input_name: str) -> None:
        """Take over a predictor, which reads no other input from then on."""
        predictor.read_only(input_name)
        self.predictor, self.task, self.input_name = predictor, task, input_name

    def embed_queries(self, values: Sequence[Any]) -> np.ndarray:
        """Return the vectors of values of the input as queries of an index, float32 (values, dim).

        Raises InvalidInputError for a value that cannot be used.
        """
        found = self.predictor.predict_rows([{self.input_name: value} for value in values])
        sides = [self._side(prediction) for prediction in found]
        vectors = np.array([vector for vector, _ in sides], dtype=np.float32)
        is_corrected = any(hubness is not None for _, hubness in sides)
        return np.pad(vectors, ((0, 0), (0, int(is_corrected))), constant_values=_QUERY_HUBNESS)

    def to_passage(self, prediction: Mapping[str, Any]) -> list[float]:
        """Return the vector of a prediction as a passage of an index: with its hubness, if the model has that."""
        vector, hubness = self._side(prediction)
        return [*vector, *([] if hubness is None else [hubness])]

    def _side(self, prediction: Mapping[str, Any]) -> tuple[list[float], float | None]:
        output = prediction["outputs"][self.task]
        return output["embeddings"][self.input_name], output.get("hubness", {}).get(self.input_name)
