"""Where the outputs of frozen encoders are kept, and for which inputs."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Tag

from rayfuse.spec.base import UrlMember

if TYPE_CHECKING:
    from rayfuse.spec.job import Job

_FOLDER = "cache"


def _mode_or_url(value: Any) -> str:
    return "mode" if value in ("auto", "off") else "url"


def _off(value: Any) -> Any:
    """YAML reads a bare `off` as false."""
    return "off" if value is False else value


Cache = Annotated[
    Annotated[Literal["auto", "off"], Tag("mode")] | UrlMember,
    Discriminator(_mode_or_url),
    BeforeValidator(_off),
]
"""`auto`, `off`, or the URL of a folder."""


def cache_url(job: "Job") -> str:
    """The folder of the job's cache."""
    return f"{job.output.storage.rstrip('/')}/{_FOLDER}" if job.data.cache == "auto" else job.data.cache


def cached_inputs(job: "Job") -> list[str]:
    """The inputs whose encoder runs once for each distinct value: it is frozen, and no row is augmented."""
    if job.data.cache == "off":
        return []
    return [
        name for name, options in job.inputs.items() if options.encoder.frozen and not _augmented(options)
    ]


def augmented_though_frozen(job: "Job") -> list[str]:
    """The inputs that are not cached because training changes their rows at random."""
    return [name for name, options in job.inputs.items() if options.encoder.frozen and _augmented(options)]


def cache_problems(job: "Job") -> Iterable[tuple[str, str]]:
    """(path below `data`, reason) where a cache that was asked for would lose the augmentation of an input."""
    if job.data.cache in ("auto", "off"):
        return
    for name in augmented_though_frozen(job):
        yield (
            "cache",
            f"the encoder of `{name}` is frozen and its outputs would be kept from the first epoch on, so that "
            f"inputs.{name}.augment changed nothing; leave augment out, train the encoder, or write `cache: auto`, "
            "which keeps what the other inputs' encoders make",
        )


def _augmented(options: Any) -> bool:
    return bool(getattr(options, "augment", ()))  # not every kind of input has some
