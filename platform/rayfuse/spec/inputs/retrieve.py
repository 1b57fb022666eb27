"""Options of texts that are found in an index."""

from pydantic import Field

from rayfuse.spec.base import Key, SpecModel, Url


class RetrieveConfig(SpecModel):
    """Passages that a query finds in an index of `rayfuse index`."""

    index: Url
    """Path or URL of the folder of the index."""
    query: Key
    """Text input that is the query, or a dialogue, whose last user's message is; requests need not contain the input that retrieves."""
    top: int = Field(3, ge=1, le=100)
    """Number of passages, the most similar first."""
    column: str = Field("text", min_length=1)
    """Column of the passages with the text that is read."""
