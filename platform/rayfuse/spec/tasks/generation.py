"""Generation: a text, written by a language model that reads the job's inputs."""

import json
from collections.abc import Mapping
from string import Formatter
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from rayfuse.errors import InvalidInputError
from rayfuse.spec.base import Problems, SpecModel, UrlMember, is_missing, mapping_or_url
from rayfuse.spec.cells import CellType
from rayfuse.spec.encoders.adapters import LoraAdapterConfig
from rayfuse.spec.encoders.huggingface import HuggingFaceEncoderConfig
from rayfuse.spec.encoders.pretrained import PretrainedModelConfig, TrainScope
from rayfuse.spec.encoders.prompt import PromptEncoderConfig
from rayfuse.spec.error_messages import suggest_nearest
from rayfuse.spec.fusion import DecisionFusionConfig
from rayfuse.spec.tasks.base import ColumnTaskConfig, Mode, Target, format_value
from rayfuse.spec.tasks.injection import CrossAttentionInjection, Injection, SoftTokensInjection
from rayfuse.spec.tasks.numbers import hash_to_floats

if TYPE_CHECKING:
    from rayfuse.spec.inputs import BaseInput
    from rayfuse.spec.job import Job

TextMetric = Literal[
    "exact", "token_f1", "bleu", "chrf", "rouge_l", "cider", "wer", "cer", "slot_f1", "valid_json"
]
TEXT_METRICS: dict[TextMetric, Mode] = {
    "exact": "max",
    "token_f1": "max",
    "bleu": "max",
    "chrf": "max",
    "rouge_l": "max",
    "cider": "max",
    "wer": "min",
    "cer": "min",
    "slot_f1": "max",
    "valid_json": "max",
}
"""Metrics of decoded replies."""
SCORE_METRICS: dict[str, Mode] = {"loss": "min", "perplexity": "min", "token_accuracy": "max"}
"""Metrics of the reference replies' tokens, which need no decoding."""
GROUP_WIDTH = 2
"""Numbers of the group at the start of a target, in tasks with `references`."""

_DEFAULT_METRICS: tuple[TextMetric, ...] = ("exact", "token_f1")
_NEEDS_TRAINING_ROWS = ("eva", "corda", "lora_ga")


def _check_prompt(prompt: str) -> str:
    try:
        parts = list(Formatter().parse(prompt))
    except ValueError as error:
        raise PydanticCustomError(
            "prompt", "{reason}; write {{ and }} for braces", {"reason": str(error)}
        ) from None
    names = [name for _, name, _, _ in parts if name is not None]
    if not all(names) or any(spec or conversion for _, _, spec, conversion in parts):
        raise PydanticCustomError("prompt", "not a prompt; write the name of an input alone, as in {image}")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise PydanticCustomError("prompt", "names {name} twice; name each input once", {"name": twice})
    return prompt


JsonSchemaOrUrl = Annotated[
    Annotated[dict[str, Any], Tag("mapping")] | UrlMember, Discriminator(mapping_or_url)
]


class DecodingConfig(SpecModel):
    """Decoding of replies: greedy by default."""

    num_beams: int = Field(1, ge=1, le=32)
    """Beams of a beam search; 1 for none."""
    temperature: float = Field(0.0, ge=0, le=4)
    """Divisor of the logits of sampling; 0: the most probable token, without sampling."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the most probable tokens whose probabilities sum to this (nucleus sampling; Holtzman et al., 2020)."""

    @model_validator(mode="after")
    def _check(self) -> "DecodingConfig":
        if self.num_beams > 1 and self.temperature:
            _reject(
                "num_beams", f"{self.num_beams} is a search, and temperature samples; leave one of them out"
            )
        if self.top_p < 1 and not self.temperature:
            _reject(
                "top_p", f"{self.top_p:g} has no effect without sampling; set temperature, or leave it out"
            )
        return self


class GenerationTaskConfig(ColumnTaskConfig, PretrainedModelConfig):
    """A text, written by a language model that reads the job's inputs in a prompt, or by the decoder of a speech model."""

    weighted_rows: ClassVar[bool] = True
    target_reader: ClassVar[str] = "rayfuse.data.targets:ReplyReader"

    type: Literal["generation"]
    train: TrainScope = "lora"
    """Trained parameters of the language model, as of a pretrained encoder; the projection of the inputs to its width is
    always trained."""
    lr: float | None = Field(None, gt=0)
    """Learning rate of the language model; by default the optimizer's, which the projection has."""
    reads: str | None = Field(None, min_length=1)
    """An input whose encoder is a part of `model`, which reads the encoder's tokens as they are, before alignment: an audio
    input with the encoder of a Whisper model, which writes a transcript and has no prompt, or an image input with that of
    a vision–language model."""
    language: str | None = Field(None, min_length=2)
    """Code of the spoken language, as in `de`, for multilingual models with `reads`; English by default."""
    task: Literal["transcribe", "translate"] = "transcribe"
    """Text that a multilingual model with `reads` writes: the spoken words, or (`translate`) their English translation."""
    inject: Injection = SoftTokensInjection(type="soft_tokens")
    """Way in which the model reads inputs with an encoder: `soft_tokens` puts their aligned tokens, projected to its width,
    in the place of their names in the prompt (as LLaVA; Liu et al., 2023); `cross_attention` adds gated layers to a causal
    model that attend to them (as Flamingo; Alayrac et al., 2022), and the prompt has the texts only."""
    prompt: Annotated[str, AfterValidator(_check_prompt)] | None = None
    """The user's turn, with the names of inputs in braces, as in `{image}Describe the image.`; by default all inputs in
    the order of the job. An input with `encoder: {type: prompt}` is put in as text. An absent input leaves nothing. With
    `inject: cross_attention`, it names such texts only."""
    system: str | None = Field(None, min_length=1)
    """The system's turn before it, for models with a chat template."""
    references: str | None = Field(None, min_length=1)
    """Column whose equal values mark rows whose replies are references of each other, such as the captions of an image."""
    learned_replies: Literal["last", "all"] = "last"
    """Replies of a dialogue (an input of type chat) that the model learns: the reply to the last message, or also those in
    earlier turns of the prompt."""
    max_tokens: int = Field(64, ge=1, le=32768)
    """Largest number of tokens of a reply, with its end token; rows with a longer one are invalid."""
    json_schema: JsonSchemaOrUrl | None = None
    """JSON Schema of the replies: a file, or the schema itself. Rows with another reply are invalid, and decoding is
    restricted to texts that follow the schema and end within `max_tokens`. The keys of a reply are in the order of the
    properties."""
    metrics: list[TextMetric] = Field(default_factory=lambda: list(_DEFAULT_METRICS))
    """Metrics of decoded replies: `exact` match and `token_f1` (Rajpurkar et al., 2016), `bleu` (Papineni et al., 2002),
    `chrf` (Popović, 2015), `rouge_l` (Lin, 2004), `cider` (CIDEr-D; Vedantam et al., 2015), word and character error rate
    (`wer`, `cer`), and for JSON replies `slot_f1`, over the values of all paths, and `valid_json`, the fraction that can be
    read. JSON objects and lists match exactly if their values are equal."""
    normalize: Literal["whisper"] | None = None
    """Normalization of English texts before `wer` and `cer`: `whisper` removes case, punctuation and fillers, and spells
    numbers and contractions alike (Radford et al., 2022, appendix C)."""
    decoding: DecodingConfig = Field(default_factory=DecodingConfig)
    """Decoding of replies in evaluation and prediction."""
    decoded_rows: int = Field(256, ge=1)
    """Validation rows whose replies are decoded after each epoch, at equal distances, none without `metrics`; the final
    evaluation decodes all."""

    @property
    def columns(self) -> dict[str, CellType]:
        return {self.column: "str", **({self.references: "int"} if self.references else {})}

    @property
    def streams_texts(self) -> bool:
        return self.decoding.num_beams == 1

    def metric_modes(self) -> dict[str, Mode]:
        return {**SCORE_METRICS, **{name: TEXT_METRICS[name] for name in self.metrics}}

    def prompt_parts(self, inputs: "Mapping[str, BaseInput]") -> list[tuple[str, str | None]]:
        """Return the texts of the prompt, each with the input after it; None after the last text."""
        if self._transcribes(inputs):
            return [("", self.reads)]
        named = [
            name
            for name, source in inputs.items()
            if source.dialogue is None and (not self._attends or _is_prompt_text(source))
        ]
        prompt = "".join(f"{{{name}}}" for name in named) if self.prompt is None else self.prompt
        return [(literal, name) for literal, name, _, _ in Formatter().parse(prompt)]

    @property
    def _attends(self) -> bool:
        return isinstance(self.inject, CrossAttentionInjection)

    def validate_in_job(self, job: "Job") -> Problems:
        if self.reads is not None:
            yield from self._validate_reads(job, self.reads)
        if self.reads is not None and self._attends:
            yield "inject", f"has no effect with reads, whose model reads `{self.reads}` itself; leave it out"
        if self._transcribes(job.inputs):
            yield from self._validate_transcripts()
        else:
            yield from self._validate_prompt(job)
        if self.normalize and not {"wer", "cer"} & set(self.metrics):
            yield "normalize", "has no effect without wer or cer; add one of them to metrics, or leave it out"
        yield from self._validate_training(job)

    def _validate_prompt(self, job: "Job") -> Problems:
        names = [name for _, name in self.prompt_parts(job.inputs) if name is not None]
        for name in names:
            if name not in job.inputs:
                yield "prompt", f"no input `{name}`; {suggest_nearest(name, list(job.inputs))}"
            elif job.inputs[name].dialogue is not None:
                yield (
                    "prompt",
                    f"`{name}` stands in the messages that it is a part of; remove it from the prompt",
                )
            elif not _is_prompt_text(job.inputs[name]):
                if self._attends:
                    yield "prompt", _attended_in_prompt(name)
            elif job.inputs[name].max_items > 1:
                yield "prompt", f"`{name}` has several texts; set inputs.{name}.max_items to 1"
        yield from ((f"inject.{where}", reason) for where, reason in self.inject.validate_for(job.inputs))
        parts = [name for name, source in job.inputs.items() if source.dialogue is not None]
        if self._attends and parts:
            yield "inject", f"cannot read `{parts[0]}`, which has its place in messages; use soft_tokens"
        yield from self._validate_chats(job, names)
        if self.json_schema is not None and self.decoding.num_beams > 1:
            yield (
                "json_schema",
                f"cannot restrict the search of decoding.num_beams {self.decoding.num_beams}; set num_beams to 1",
            )
        if not names and not self._attends:
            yield "prompt", "names no input; write one in braces, as in {image}Describe the image."
        if self.reads is not None and self.reads not in [*names, *self._parts_of(job, names)]:
            yield (
                "prompt",
                f"does not name `{self.reads}`, which reads names; write {{{self.reads}}} where it stands",
            )
        for field, is_set in (("language", self.language is not None), ("task", self.task != "transcribe")):
            if is_set:
                yield field, "has no effect without an audio input in reads; name one there, or leave it out"

    def _parts_of(self, job: "Job", dialogues: list[str]) -> list[str]:
        """Return the inputs that have their place in the messages of these dialogues."""
        return [name for name, source in job.inputs.items() if source.dialogue in dialogues]

    def _validate_chats(self, job: "Job", names: list[str]) -> Problems:
        chats = [name for name in names if name in job.inputs and job.inputs[name].type == "chat"]
        if self.learned_replies == "all" and not chats:
            yield "learned_replies", "has no effect without an input of type chat in the prompt; leave it out"
        if len(chats) > 1:
            yield (
                "prompt",
                f"`{chats[0]}` and `{chats[1]}` are dialogues, and a prompt has one; name one of them",
            )

    def _transcribes(self, inputs: "Mapping[str, BaseInput]") -> bool:
        """Return whether the model is the decoder of a speech model, which has no prompt."""
        return self.reads is not None and self.reads in inputs and inputs[self.reads].type == "audio"

    def _validate_transcripts(self) -> Problems:
        for field in ("prompt", "system"):
            if getattr(self, field) is not None:
                yield field, "has no effect with reads of audio, which replaces the prompt; leave it out"
        if self.json_schema is not None:
            yield "json_schema", "cannot restrict transcripts, which are texts; leave it out"

    def _validate_reads(self, job: "Job", name: str) -> Problems:
        if name not in job.inputs:
            yield "reads", f"no input `{name}`; {suggest_nearest(name, list(job.inputs))}"
            return
        source = job.inputs[name]
        if source.type not in ("audio", "image"):
            yield "reads", f"`{name}` is an input of type {source.type}; name one of type audio or image"
            return
        encoder = source.encoder
        if not isinstance(encoder, HuggingFaceEncoderConfig) or encoder.pool != "none":
            yield (
                "reads",
                f"the encoder of `{name}` does not return the tokens of this model's; set inputs.{name}.encoder to "
                f"{{type: huggingface, model: {self.model}, pool: none}}",
            )
        elif encoder.hidden_states != (-1,):
            yield (
                "reads",
                f"the model reads the last hidden state; remove inputs.{name}.encoder.hidden_states",
            )
        if source.dialogue is None and source.max_items > 1:
            yield "reads", f"`{name}` has several values; set inputs.{name}.max_items to 1"
        if source.dialogue is not None and source.type == "audio":
            yield "reads", f"`{name}` has its place in messages, and a transcript has none; remove part_of"

    def validate_zero_stage(self, stage: int) -> Problems:
        yield from super().validate_zero_stage(stage)
        if stage == 3 and self.json_schema is not None:
            yield (
                "json_schema",
                "cannot restrict replies while ZeRO stage 3 shards the language model over workers; use stage 2",
            )

    def _validate_training(self, job: "Job") -> Problems:
        yield from self.validate_adapter(job)
        if (
            isinstance(self.adapter, LoraAdapterConfig)
            and self.adapter.init_lora_weights in _NEEDS_TRAINING_ROWS
        ):
            yield (
                "lora.init_lora_weights",
                f"{self.adapter.init_lora_weights} is computed for encoders only; use default, pissa or olora",
            )
        if isinstance(job.fusion, DecisionFusionConfig):
            yield (
                "type",
                f"generation cannot be combined with fusion.type {job.fusion.type}, which combines the predictions of "
                "single inputs; use soft_tokens",
            )
        if any(loss.type == "consistency" for loss in job.align.loss):
            yield "type", "generation cannot be combined with align.loss consistency; remove that loss"
        if job.train.distillation:
            yield "type", "generation cannot be distilled; remove train.distillation"

    def read(self, values: Mapping[str, Any], inputs: "Mapping[str, BaseInput]") -> Target:
        raise NotImplementedError("the tokens of a reply are read by rayfuse.data.targets")

    def reply(self, values: Mapping[str, Any]) -> str:
        """Return the reply of a row, without white space around it. Raises InvalidInputError if there is none."""
        value = values.get(self.column)
        if is_missing(value):
            raise InvalidInputError("the reply is missing")
        if self.json_schema is not None and isinstance(value, (dict, list, bool)):
            value = json.dumps(value, ensure_ascii=False)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = str(int(value)) if float(value).is_integer() else str(value)
        if not isinstance(value, str):
            raise InvalidInputError(f"the reply {format_value(value)} is not a text")
        if not value.strip():
            raise InvalidInputError("the reply is empty; write a text, or remove the row")
        return value.strip()

    def group(self, values: Mapping[str, Any]) -> list[float]:
        """Return a hash of the value of `references`, as numbers; NaN for a row without a group; empty without `references`."""
        if self.references is None:
            return []
        value = values.get(self.references)
        return [float("nan")] * GROUP_WIDTH if is_missing(value) else hash_to_floats(value)

    def loss_weight(self, target: Target) -> float:
        """Return the number of tokens of a reply."""
        assert isinstance(target, list)
        return float(len(target) - (GROUP_WIDTH if self.references else 0))


def _is_prompt_text(source: "BaseInput") -> bool:
    return isinstance(source.encoder, PromptEncoderConfig)


def _attended_in_prompt(name: str) -> str:
    return (
        f"`{name}` has an encoder, and inject: cross_attention reads it in the layers of the model; remove "
        f"{{{name}}}, or use inject: soft_tokens"
    )


def _reject(path: str, reason: str) -> None:
    raise PydanticCustomError("task", "{reason}", {"reason": reason, "path": path})
