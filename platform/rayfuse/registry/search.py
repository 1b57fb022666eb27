"""Search in an index, with the model that it contains."""

import threading
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

from rayfuse.data.passage_index import IndexDescription, Passage, PassageIndex
from rayfuse.errors import DataError
from rayfuse.formatting import plural
from rayfuse.model.predictor import Predictor
from rayfuse.model.side_embedder import SideEmbedder
from rayfuse.registry.download import fetch
from rayfuse.spec.inputs.retrieve import RetrieveConfig

_CACHED_QUERIES = 100_000


class Index:
    """Passages that queries find. The model that embeds queries is loaded at the first search."""

    def __init__(self, url: str, device: str | None = None) -> None:
        """Read the description of the index at a path or URL. Raises DataError if there is none."""
        self._passages, self._device = PassageIndex(url), device
        self._loading = threading.Lock()

    @property
    def description(self) -> IndexDescription:
        """The model, the task, the inputs, the columns, and the numbers of passages and dimensions."""
        return self._passages.description

    def search(self, query: Any, top: int = 5, columns: Sequence[str] | None = None) -> list[Passage]:
        """Return the `top` passages that are most similar to a value of the query input, the most similar first.

        query: a text, or the path, URL or bytes of a file, by the type of the input; columns: those of the passages to
        return, by default all. Raises InvalidInputError for a query that cannot be used, SpecError for an unknown column.
        """
        [found] = self.search_many([query], top, columns)
        return found

    def search_many(
        self, queries: Sequence[Any], top: int = 5, columns: Sequence[str] | None = None
    ) -> list[list[Passage]]:
        """Return what `search` does for each of several queries, which are embedded in batches."""
        with self._loading:  # threads that search at once load the model once
            embedder = self._embedder
        return self._passages.search(embedder.embed_queries(queries), top, columns)

    @cached_property
    def _embedder(self) -> SideEmbedder:
        predictor = Predictor(fetch(self._passages.model_url).folder, self._device)
        return SideEmbedder(predictor, self.description.task, self.description.query_input)

    def __repr__(self) -> str:
        described = self.description
        return (
            f"Index: {plural(described.rows, 'passage')} in {self._passages.url}\n"
            f"  {described.query_input} finds {described.input}, by task {described.task} of {described.model['name']}\n"
            f"  columns: {', '.join(described.columns)}"
        )


class Retriever:
    """Passages for the queries of an input with `retrieve`; equal queries are searched once."""

    def __init__(self, options: RetrieveConfig) -> None:
        """Read the description of the index. Raises DataError if there is none, or it cannot answer the queries."""
        self._index = Index(options.index, device="cpu")
        if options.column not in self._index.description.columns:
            known = ", ".join(self._index.description.columns)
            raise DataError(
                f"{options.index}: the passages have no column {options.column}; set retrieve.column to one of: {known}"
            )
        self._options = options
        self.find = lru_cache(_CACHED_QUERIES)(self._find)
        """Return the passages of a query, a text, the most similar first."""

    def _find(self, query: str) -> tuple[Passage, ...]:
        return tuple(self._index.search(query, self._options.top))

    def __reduce__(self) -> tuple[type, tuple[RetrieveConfig]]:
        """Open the index again in another process."""
        return Retriever, (self._options,)
