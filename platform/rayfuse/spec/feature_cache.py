"""Feature cache: the folder for outputs of frozen encoders, and the inputs that it is used for."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Tag

from rayfuse.spec.base import Problems, UrlMember

if TYPE_CHECKING:
    from rayfuse.spec.inputs import Input
    from rayfuse.spec.job import Job

_FOLDER = "cache"


def _mode_or_url(value: Any) -> str:
    return "mode" if value in ("auto", "off") else "url"


def _bool_to_off(value: Any) -> Any:
    """Return `off` for false, which older YAML reads for `off`, and for `no`, which would be a folder."""
    return "off" if value is False or value == "no" else value


FeatureCache = Annotated[
    Annotated[Literal["auto", "off"], Tag("mode")] | UrlMember,
    Discriminator(_mode_or_url),
    BeforeValidator(_bool_to_off),
]
"""`auto`, `off`, or the URL of a folder."""


def feature_cache_url(job: "Job") -> str:
    """Return the folder of the job's cache."""
    return (
        f"{job.output.storage.rstrip('/')}/{_FOLDER}"
        if job.data.feature_cache == "auto"
        else job.data.feature_cache
    )


def cached_inputs(job: "Job") -> list[str]:
    """Return the inputs with an encoder that runs once for each distinct value: it is frozen, and rows are not augmented.

    It is the input's encoder, or one inside it (`BaseEncoderConfig.frozen_part`).
    """
    if job.data.feature_cache == "off":
        return []
    return [
        name for name, options in job.inputs.items() if options.encoder.frozen_part and not options.augment
    ]


def with_cached_encoder(options: "Input") -> "Input":
    """Return an input of `cached_inputs` with the encoder whose outputs are cached."""
    return options.model_copy(update={"encoder": options.encoder.frozen_part})


def with_running_encoder(options: "Input") -> "Input | None":
    """Return an input of `cached_inputs` with the encoder that runs on every value; None if all outputs are cached."""
    running = options.encoder.running_part
    return None if running is None else options.model_copy(update={"encoder": running})


def frozen_augmented_inputs(job: "Job") -> list[str]:
    """Return the inputs with a frozen encoder that are not cached because their rows are augmented."""
    return [name for name, options in job.inputs.items() if options.encoder.frozen_part and options.augment]


def validate_feature_cache(job: "Job") -> Problems:
    """Yield an error for each input whose augmentation an explicit cache would disable."""
    if job.data.feature_cache in ("auto", "off"):
        return
    for name in frozen_augmented_inputs(job):
        yield (
            "feature_cache",
            f"caching the outputs of the frozen encoder of `{name}` would disable inputs.{name}.augment; leave augment "
            "out, train the encoder, or use `feature_cache: auto`, which caches the other inputs only",
        )
