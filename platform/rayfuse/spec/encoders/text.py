"""Options of the built-in encoder of n-grams of texts."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from rayfuse.spec.base import Problems
from rayfuse.spec.encoders.base import BaseEncoderConfig
from rayfuse.spec.encoders.huggingface import HuggingFaceEncoderConfig

if TYPE_CHECKING:
    from rayfuse.spec.job import Job

_Length = Annotated[int, Field(ge=1, le=16)]


class NGramsEncoderConfig(BaseEncoderConfig):
    """The sum of the embeddings of a text's n-grams, weighted by TF-IDF, trained from scratch.

    A linear classifier of n-grams of low rank (fastText; Joulin et al., 2017), with the word pairs that make such a
    classifier a strong baseline (Wang and Manning, 2012).
    """

    type: Literal["ngrams"]
    hidden_size: int = Field(128, ge=4, le=4096)
    """Width of an n-gram's embedding."""
    words: int = Field(2, ge=1, le=5)
    """Longest n-gram of words: 1 for single words, 2 also for pairs of neighboring words."""
    characters: tuple[_Length, _Length] | None = None
    """Shortest and longest n-gram of characters inside words, such as [3, 5]; by default none."""
    min_frequency: int = Field(2, ge=1)
    """Number of training rows below which an n-gram is left out."""
    vocabulary_size: int = Field(30_000, ge=1, le=10_000_000)
    """Largest number of n-grams; the most frequent are used."""
    sublinear_tf: bool = True
    """Replace the count of an n-gram in a text by 1 + log(count)."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout rate on the outputs."""
    pretrained: HuggingFaceEncoderConfig | None = None
    """A pretrained encoder of the same text, whose vector is appended to that of the n-grams; by default none."""
    vocabulary: list[str] | None = None
    """Known n-grams; by default those of the training rows, most frequent first."""
    idf: list[float] | None = None
    """Inverse document frequency of each n-gram of `vocabulary`; by default of the training rows."""

    @property
    def fit_options(self) -> dict[str, Any]:
        return self.model_dump(exclude={"lr", "hidden_size", "sublinear_tf", "dropout", "pretrained"})

    @property
    def frozen_part(self) -> BaseEncoderConfig | None:
        return self.pretrained.frozen_part if self.pretrained is not None else None

    @property
    def running_part(self) -> BaseEncoderConfig:
        return self.model_copy(update={"pretrained": None}) if self.frozen_part is not None else self

    @property
    def inner_encoders(self) -> Mapping[str, BaseEncoderConfig]:
        return {} if self.pretrained is None else {"pretrained": self.pretrained}

    def validate_in_job(self, job: "Job") -> Problems:
        if self.pretrained is None:
            return
        if self.pretrained.outputs_tokens:
            yield "pretrained.pool", "`none`, and n-grams are one vector; use another pooling, such as mean"
        yield from ((f"pretrained.{where}", reason) for where, reason in self.pretrained.validate_in_job(job))

    def with_fitted(self, fitted: BaseEncoderConfig) -> "NGramsEncoderConfig":
        assert isinstance(fitted, NGramsEncoderConfig), "its fit_options differ from those of other encoders"
        return self.model_copy(update={"vocabulary": fitted.vocabulary, "idf": fitted.idf})

    @model_validator(mode="after")
    def _check_lengths(self) -> "NGramsEncoderConfig":
        if self.characters is not None and self.characters[0] > self.characters[1]:
            _reject("characters", f"{list(self.characters)} is empty; write the shorter length first")
        count = len(self.vocabulary or ())
        if len(self.idf or ()) != count:
            _reject(
                "idf",
                f"{len(self.idf or ())} numbers for the {count} n-grams of `vocabulary`; write one per n-gram, or leave "
                "both out",
            )
        return self


def _reject(path: str, reason: str) -> None:
    raise PydanticCustomError("encoder", "{reason}", {"reason": reason, "path": path})
