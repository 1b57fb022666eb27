"""An index: passages with an embedding each, in a folder that has all that a search needs.

    OUT/index.json        model, task, inputs, columns, and the numbers of passages and dimensions
    OUT/passages.lance    a Lance table: the columns of the data, and `embedding`
    OUT/model/            the model that embeds queries

Lance finds the nearest embeddings exactly, and through an IVF index where there are `INDEXED_ROWS` or more.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rayfuse.data.files import filesystem
from rayfuse.errors import DataError, ResourceError, SpecError
from rayfuse.formatting import first_line
from rayfuse.spec.error_messages import suggest_nearest

if TYPE_CHECKING:
    import pyarrow as pa

EMBEDDING = "embedding"
"""Column of the embeddings, float32 (dim,)."""
DISTANCE = "_distance"
"""Column that Lance adds: 1 - the dot product."""
INDEXED_ROWS = 100_000

_DESCRIPTION, _TABLE, _MODEL = "index.json", "passages.lance", "model"
_FORMAT = 1
_PROBES = 32
"""Partitions of the IVF index that a search reads."""


@dataclass(frozen=True)
class IndexDescription:
    """Content of `index.json`."""

    model: dict[str, Any]
    """Name, version and digest of the model that computed the embeddings."""
    task: str
    """Its retrieval task."""
    input: str
    """Input of the task that the passages are."""
    query_input: str
    """Input of the task that finds them."""
    columns: list[str]
    """Columns of the passages."""
    dim: int
    """Length of an embedding."""
    rows: int
    """Number of passages."""
    format: int = _FORMAT
    """Version of the layout of the folder."""


@dataclass(frozen=True)
class Passage:
    """A passage that a search has found."""

    values: dict[str, Any]
    """Its columns."""
    similarity: float
    """Cosine of its embedding and the query's; for a task with `csls_bank`, less half of the passage's hubness."""

    def to_dict(self) -> dict[str, Any]:
        """Return the passage as JSON; dates and times are texts."""
        return {"similarity": self.similarity, "values": json.loads(json.dumps(self.values, default=str))}


class PassageIndex:
    """Searches the passages of an index; the table is opened at the first search of each process."""

    def __init__(self, url: str) -> None:
        """Read the description at a path or URL. Raises DataError if there is no index."""
        self.url = url.rstrip("/")
        """Path or URL of the folder."""
        self.description = _read_description(self.url)
        """Model, task, inputs, columns and sizes."""
        self._table: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}

    @property
    def model_url(self) -> str:
        """Path or URL of the folder of the model that embeds queries."""
        return f"{self.url}/{_MODEL}"

    def search(
        self, vectors: np.ndarray, top: int, columns: Sequence[str] | None = None
    ) -> list[list[Passage]]:
        """Return the `top` nearest passages of each query, the nearest first.

        vectors: embeddings of queries, float (queries, dim); columns: those of the passages to return, by default all.
        Raises SpecError for an unknown column, DataError if the table is damaged.
        """
        columns = list(self.description.columns if columns is None else columns)
        for name in columns:
            if name not in self.description.columns:
                known = suggest_nearest(name, self.description.columns)
                raise SpecError(f"{self.url}: the passages have no column {name}; {known}")
        with _table_errors(self.url):
            return [self._nearest(vector, top, columns) for vector in vectors]

    def _nearest(self, vector: np.ndarray, top: int, columns: list[str]) -> list[Passage]:
        if self._table is None:
            self._table = _import_lance(self.url).dataset(f"{self.url}/{_TABLE}")
        nearest = {
            "column": EMBEDDING,
            "q": vector.astype(np.float32),
            "k": top,
            "metric": "dot",
            "minimum_nprobes": _PROBES,
        }
        rows = self._table.to_table(columns=[*columns, DISTANCE], nearest=nearest).to_pylist()
        return [Passage({name: row[name] for name in columns}, 1 - row[DISTANCE]) for row in rows]


def write_index(
    url: str, description: IndexDescription, schema: "pa.Schema", batches: "Iterator[pa.RecordBatch]"
) -> None:
    """Write the table and the description of an index, over an index that is already there.

    The description is written last: a folder without it is no index. Raises ResourceError if the folder cannot be
    written.
    """
    import pyarrow as pa

    fs, path = filesystem(url)
    lance = _import_lance(url)
    with _write_errors(url):
        fs.makedirs(path, exist_ok=True)
        if fs.exists(f"{path}/{_DESCRIPTION}"):
            fs.rm(f"{path}/{_DESCRIPTION}")
        reader = pa.RecordBatchReader.from_batches(schema, batches)
        table = lance.write_dataset(reader, f"{url.rstrip('/')}/{_TABLE}", mode="overwrite")
        if description.rows >= INDEXED_ROWS:
            table.create_index(EMBEDDING, "IVF_FLAT", metric="dot", num_partitions=int(description.rows**0.5))
        fs.pipe_file(f"{path}/{_DESCRIPTION}", json.dumps(asdict(description), indent=2).encode())


def copy_model(folder: str, url: str) -> None:
    """Copy a model folder into the folder of an index. Raises ResourceError if that cannot be written."""
    fs, path = filesystem(url)
    target = f"{path}/{_MODEL}"
    with _write_errors(url):
        if fs.exists(target):
            fs.rm(target, recursive=True)
        fs.put(f"{folder.rstrip('/')}/", f"{target}/", recursive=True)


def _read_description(url: str) -> IndexDescription:
    fs, path = filesystem(url)
    try:
        content = json.loads(fs.cat_file(f"{path}/{_DESCRIPTION}"))
    except FileNotFoundError:
        raise DataError(
            f"{url}: not an index: it has no {_DESCRIPTION}; write one with `rayfuse index`"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{url}: {_DESCRIPTION} cannot be read: {first_line(str(error))}") from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise DataError(f"{url}: an index of another version of Rayfuse; write it again with `rayfuse index`")
    return IndexDescription(**content)


def _import_lance(url: str) -> Any:
    os.environ.setdefault("LANCE_LOG", "error")  # it warns of every table that it creates
    try:
        import lance
    except ImportError:
        raise DataError(f"{url}: an index needs pylance; `pip install 'rayfuse[lance]'`") from None
    return lance


@contextmanager
def _table_errors(url: str) -> Iterator[None]:
    """Convert Lance's errors, which have no common class, to DataError."""
    try:
        yield
    except (DataError, SpecError):
        raise
    except Exception as error:  # noqa: BLE001 - see above
        raise DataError(f"{url}: cannot be searched: {first_line(str(error))}") from None


@contextmanager
def _write_errors(url: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"{url}: cannot be written: {first_line(str(error))}; free space, or write elsewhere"
        ) from None
