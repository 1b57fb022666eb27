"""Texts."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from rayfuse.spec.augment import SwapTokens, TextAugment
from rayfuse.spec.base import Problems
from rayfuse.spec.cells import CellType
from rayfuse.spec.encoders import (
    ConvEncoderConfig,
    NGramsEncoderConfig,
    TextEncoderConfig,
)
from rayfuse.spec.inputs.base import ColumnInput
from rayfuse.spec.inputs.chat import ChatInput
from rayfuse.spec.inputs.retrieve import RetrieveConfig
from rayfuse.spec.templates import check_template, fill_template, template_columns

if TYPE_CHECKING:
    from rayfuse.spec.job import Job


class TextInput(ColumnInput):
    """A text, tokenized by the encoder's own tokenizer; encoders trained from scratch read UTF-8 bytes or n-grams.

    A list of words is a text too.
    """

    length_field: ClassVar[str | None] = "max_tokens"
    length_mask: ClassVar[str | None] = "attention_mask"
    pads_to_longest: ClassVar[bool] = True
    has_words: ClassVar[bool] = True

    type: Literal["text"]
    encoder: TextEncoderConfig = ConvEncoderConfig(type="conv")
    """Encoder of this input."""
    max_tokens: int = Field(128, ge=1, le=32768)
    """Number of tokens after which a text is cut: those of the tokenizer, bytes, or words of the encoder `ngrams`."""
    template: Annotated[str, AfterValidator(check_template)] | None = None
    """Text from several columns instead of `column`, as in "{title}: {body}". Missing values are empty, and a line of the
    template whose columns all are missing is left out."""
    retrieve: RetrieveConfig | None = None
    """Passages of an index instead of the text itself, which is the query that finds them. `column` and `template` are
    then those of the query's input."""
    augment: list[TextAugment] = Field(default_factory=list)
    """Random changes of training rows, applied in order."""

    @property
    def fallback_input(self) -> str | None:
        return self.retrieve.query if self.retrieve else None

    @property
    def source_columns(self) -> dict[str, CellType]:
        if self.template is None:
            return super().source_columns
        return dict.fromkeys(template_columns(self.template), "str")

    @property
    def column_key(self) -> str:
        return "column" if self.template is None else "template"

    @property
    def reads_mapping(self) -> bool:
        return self.template is not None

    def read(self, values: Mapping[str, Any]) -> Any:
        return super().read(values) if self.template is None else fill_template(self.template, values)

    def validate_in_job(self, job: "Job") -> Problems:
        if self.retrieve is not None:
            yield from self._validate_query(job, self.retrieve.query)
        if self.template is not None and self.max_items > 1:
            yield (
                "max_items",
                f"{self.max_items} is not 1, and `template` builds one text; leave one of them out",
            )
        for number, step in enumerate(self.augment):
            if isinstance(step, SwapTokens) and isinstance(self.encoder, NGramsEncoderConfig):
                yield (
                    f"augment.{number}",
                    "`token_swap` has no effect on n-grams, which have no order; use `token_dropout`",
                )
        if self.augment and isinstance(self.encoder, NGramsEncoderConfig) and self.encoder.pretrained:
            yield (
                "augment",
                "changes n-grams, and `encoder.pretrained` would read the unchanged text; leave one of them out",
            )

    def _validate_query(self, job: "Job", name: str) -> Problems:
        texts = {
            other: source
            for other, source in job.inputs.items()
            if isinstance(source, ChatInput) or (isinstance(source, TextInput) and source.retrieve is None)
        }
        if name not in texts:
            known = f"one of: {', '.join(texts)}" if texts else "this job has none"
            yield "retrieve.query", f"no text or dialogue `{name}`; {known}"
        elif texts[name].optional and not self.optional:
            yield (
                "optional",
                f"`{name}`, which finds these passages, is optional; set optional: true here too",
            )
        if self.max_items > 1:
            yield (
                "max_items",
                f"{self.max_items} is not 1, and `retrieve` builds one text; leave one of them out",
            )
