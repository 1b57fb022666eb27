"""Custom fusions and encoders by import path."""

from pathlib import Path

import pytest
import tiny_jobs
import torch
from torch import nn
from variants import train_and_reload

from rayfuse.errors import SpecError
from rayfuse.model.encoders import Encoder
from rayfuse.model.fusion import FusionModule, FusionOutput
from rayfuse.model.tokens import Tokens, as_single_token, mean_pool
from rayfuse.spec.base import SpecModel


class Mean(FusionModule):
    """Mean of the present inputs."""

    class Options(SpecModel):
        scale: float = 1.0

    def __init__(self, options: Options, dim: int, inputs: list[str]) -> None:
        super().__init__(options, dim, inputs)
        self.linear = nn.Linear(dim, dim)
        self.scale = options.scale

    def forward(self, inputs: dict[str, Tokens]) -> FusionOutput:
        tokens = torch.stack([mean_pool(*part) for part in inputs.values()], dim=1)
        present = torch.stack([mask.any(dim=1) for _, mask in inputs.values()], dim=1)
        return {"vector": self.linear(mean_pool(tokens, present)) * self.scale}


class Colour(Encoder):
    """Mean colour of an image."""

    width = 3

    def __init__(self, options: dict[str, float], source: object) -> None:
        super().__init__(options, source)
        self.linear = nn.Linear(3, 3)

    def forward(self, pixel_values: torch.Tensor) -> Tokens:  # type: ignore[override]
        return as_single_token(self.linear(pixel_values.mean(dim=(2, 3))))


def test_custom_fusion_and_encoder(tmp_path: Path) -> None:
    overrides = {
        "fusion": {"type": f"{__name__}:Mean", "options": {"scale": 2}},
        "inputs.image.encoder": {"type": f"{__name__}:Colour", "lr": 0.1},
    }
    model, _ = train_and_reload(tmp_path, tiny_jobs.tiny_job(tmp_path, **overrides))
    assert isinstance(model.fusion, Mean)
    assert model.fusion.scale == 2
    assert isinstance(model.encoders["image"], Colour)


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        ({"type": "no_such_package.fusion:Mine"}, "no_such_package.fusion:Mine: No module named 'no_such_package'; inst"),
        ({"type": f"{__name__}:Nothing"}, f"{__name__}:Nothing: the module {__name__} has no `Nothing`"),
        ({"type": f"{__name__}:Colour"}, f"{__name__}:Colour: not a subclass of rayfuse.model.fusion.base.FusionModule"),
        ({"type": f"{__name__}:Mean", "options": {"scal": 1}}, "options.scal: unknown key; did you mean scale?"),
        ({"type": "os:"}, "fusion.type: 'os:' is not an import path"),
        ({"type": f"{__name__}:Mean", "scale": 1}, "fusion.scale: unknown key; "),
    ],
)  # fmt: skip
def test_classes_of_another_type_are_rejected(tmp_path: Path, block: dict[str, object], problem: str) -> None:
    with pytest.raises(SpecError) as caught:
        train_and_reload(tmp_path, tiny_jobs.tiny_job(tmp_path, fusion=block))
    assert problem in str(caught.value)
