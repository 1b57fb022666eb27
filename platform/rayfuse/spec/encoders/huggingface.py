"""Options of pretrained encoders."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from rayfuse.spec.base import ModelRef
from rayfuse.spec.encoders.adapters import IA3, OFT, Lora
from rayfuse.spec.encoders.base import LayeredEncoder, Pool

Trained = Annotated[str, Field(pattern=r"^(frozen|last:[1-9][0-9]{0,2}|lora|ia3|oft|full)$")]


def _ends_at_the_last(value: tuple[int, ...]) -> tuple[int, ...]:
    if value[-1] != -1 or len(set(value)) < len(value):
        raise PydanticCustomError(
            "hidden_states", "not a list of hidden states; name each once, and end with -1, the last"
        )
    return value


class HuggingFaceEncoder(LayeredEncoder):
    """A pretrained encoder from a Hugging Face folder or hub."""

    type: Literal["huggingface"]
    model: ModelRef
    """A folder, a URL of one, or an id on the hub."""
    train: Trained = "frozen"
    """What is trained: nothing (`frozen`), the last N layers and what comes after them (`last:N`), adapters (`lora`,
    `ia3`, `oft`), or everything (`full`)."""
    lora: Lora = Lora()
    """Used with `train: lora`."""
    ia3: IA3 = IA3()
    """Used with `train: ia3`."""
    oft: OFT = OFT()
    """Used with `train: oft`."""
    pool: Pool = "mean"
    """How the encoder's outputs become one vector; `none` hands every position to the fusion."""

    hidden_states: Annotated[
        tuple[int, ...], Field(min_length=1, max_length=64), AfterValidator(_ends_at_the_last)
    ] = (-1,)
    """Which hidden states are handed on, side by side, each with layer norm where there are several: 0 is what enters
    the first layer, 1 what it makes of it; -1 is the last and ends the list (as in Devlin et al., 2019, §5.3)."""

    @property
    def frozen(self) -> bool:
        return self.train == "frozen" and self.pool != "attention"  # whose weights are learned

    @property
    def adapter(self) -> Lora | IA3 | OFT | None:
        """The adapters that are trained, if any."""
        blocks: dict[str, Lora | IA3 | OFT] = {"lora": self.lora, "ia3": self.ia3, "oft": self.oft}
        return blocks.get(self.train)

    @property
    def last_layers(self) -> int | None:
        """N of `train: last:N`."""
        return int(self.train.removeprefix("last:")) if self.train.startswith("last:") else None

    def problems(self, job: Any) -> Iterable[tuple[str, str]]:
        if self.train == "frozen" and self.layer_decay != 1:
            yield "layer_decay", "a frozen encoder has no learning rates; leave it out, or train some of it"
        if self.adapter is not None:
            yield from ((f"{self.train}.{where}", reason) for where, reason in self.adapter.problems(job))
