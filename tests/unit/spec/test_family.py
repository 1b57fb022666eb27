"""Families of parts: one registry each, and parts by import path."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from rayfuse.errors import SpecError
from rayfuse.modalities import Features, Modality, build_input_fitter, build_modality, modality_class
from rayfuse.modalities.augment import Augmentation, augment
from rayfuse.modalities.base import InputFitter
from rayfuse.model.alignment import Alignment, build_alignment
from rayfuse.model.alignment_losses import AlignedRows, AlignmentLoss, build_alignment_loss
from rayfuse.model.tokens import Tokens
from rayfuse.registry.gates import Gate, GateContext, GateResult, parse_gate
from rayfuse.spec.align import AlignConfig
from rayfuse.spec.align_losses import AlignLossConfig
from rayfuse.spec.augment import ImageAugment
from rayfuse.spec.base import SpecModel
from rayfuse.spec.error_messages import format_errors
from rayfuse.spec.family import Family, load_families
from rayfuse.spec.gates import GATES, CustomGateConfig, NoRegressionConfig
from rayfuse.spec.inputs import Input
from rayfuse.spec.optimizers import OptimizerConfig
from rayfuse.spec.schedules import ScheduleConfig
from rayfuse.spec.schema import custom_part_schema
from rayfuse.training.optimizers import Optimizer, ParamGroup, build_optimizer
from rayfuse.training.schedule import Schedule, lr_factor

FAMILIES = [family for families in load_families().values() for family in families]


class Amount(SpecModel):
    amount: float = 0.5


class Halve(Augmentation):
    Options = Amount

    def __call__(self, features: Features, rng: np.random.Generator) -> Features:
        return {name: array * self.options.amount for name, array in features.items()}


class LowestLetter(InputFitter):
    def __init__(self) -> None:
        self.lowest = ord("z")

    def partial_fit(self, value: Any) -> None:
        self.lowest = min(self.lowest, *map(ord, value))

    def finalize(self) -> "Letters.Options":
        return Letters.Options(lowest=self.lowest)


class Letters(Modality):
    """The codes of a text's letters, above the lowest of the training rows."""

    class Options(SpecModel):
        lowest: int = 0

    value_formats = ("text",)

    def __init__(self, options: Options) -> None:
        self.options = options

    @classmethod
    def fitter(cls, options: Options) -> InputFitter:
        return LowestLetter()

    def decode(self, value: Any) -> str:
        return str(value)

    def process(self, decoded: str) -> Features:
        return {"codes": np.array([ord(letter) - self.options.lowest for letter in decoded])}

    def dummy_features(self) -> Features:
        return self.process("a")


class Doubling(Alignment):
    Options = Amount

    def __init__(self, options: Amount, width: int, dim: int) -> None:
        super().__init__(options, width, dim)
        self.linear = torch.nn.Linear(width, dim)
        self.amount = options.amount

    def align(self, tokens: torch.Tensor, mask: torch.Tensor) -> Tokens:
        return self.linear(tokens) * self.amount, mask


class Nothing(AlignmentLoss):
    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options

    def __call__(self, rows: AlignedRows) -> torch.Tensor:
        return rows.batch.weights * 0


class Descent(Optimizer):
    Options = Amount

    def build(self, groups: list[ParamGroup]) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, momentum=self.options.amount)


class Steps(Schedule):
    Options = Amount

    def factor(self, step: int, total_steps: int, warmup_steps: float) -> float:
        return float(self.options.amount)


class Never(Gate):
    Options = Amount

    def evaluate(self, context: GateContext) -> GateResult:
        return GateResult("never", False, f"by {self.options.amount}")


def path_of(part: type) -> str:
    return f"{__name__}:{part.__name__}"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_part_has_an_implementation(family: Family[Any]) -> None:
    for type_, config in family.items():
        assert config.model_fields["type"].annotation is not None
        assert callable(family.implementation(type_))
        assert family.config_class(type_) is config
    assert family.config_class("my_package.module:MyPart") is family.custom
    assert family.config_class("no_such_part") is None


def test_a_custom_augmentation() -> None:
    step = TypeAdapter(ImageAugment).validate_python({"type": path_of(Halve), "options": {"amount": 0.25}})
    features = {"pixel_values": np.ones(2)}
    changed = augment("image", [step], features, np.random.default_rng(0))
    assert changed["pixel_values"].tolist() == [0.25, 0.25]
    assert augment("my:Input", [step], features, np.random.default_rng(0))["pixel_values"][0] == 0.25


def test_a_custom_input_fits_its_own_options() -> None:
    block = {"type": path_of(Letters), "column": "word", "max_items": 2, "encoder": {"type": "a.b:C"}}
    options = TypeAdapter(Input).validate_python(block)
    assert options.source_columns == {"word": "json"}
    assert modality_class(options) is Letters
    fitter = build_input_fitter(options)
    assert fitter is not None
    for value in ("cab", "bad"):
        fitter.partial_fit(value)
    fitted = fitter.finalize()
    assert fitted.model_dump()["options"] == {"lowest": ord("a")}
    assert build_modality(fitted).process("ab")["codes"].tolist() == [0, 1]


def test_a_custom_input_needs_a_custom_encoder() -> None:
    with pytest.raises(ValueError) as caught:
        TypeAdapter(Input).validate_python({"type": "a.b:C", "column": "x", "encoder": {"type": "conv"}})
    assert format_errors(caught.value, Input) == [
        "encoder: unknown type `conv`; write the import path of a class, MODULE:CLASS"
    ]


def test_a_custom_alignment_and_its_loss() -> None:
    options = TypeAdapter(AlignConfig).validate_python(
        {"type": path_of(Doubling), "dim": 8, "standardize": True, "options": {"amount": 2}}
    )
    alignment = build_alignment(options, 3)
    assert isinstance(alignment, Doubling)
    assert (alignment.amount, alignment.placeholder.shape, alignment.linear.out_features) == (2, (8,), 8)
    assert alignment.standardizer is not None
    loss = TypeAdapter(AlignLossConfig).validate_python({"type": path_of(Nothing), "options": {"a": 1}})
    built = build_alignment_loss(loss)
    assert isinstance(built, Nothing)
    assert built.options == {"a": 1}


def test_a_custom_optimizer_and_schedule() -> None:
    options = TypeAdapter(OptimizerConfig).validate_python({"type": path_of(Descent), "lr": 0.1})
    group = {"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.1, "weight_decay": 0.0}
    assert build_optimizer(options, [group]).param_groups[0]["momentum"] == 0.5
    schedule = TypeAdapter(ScheduleConfig).validate_python({"type": path_of(Steps), "warmup": 1})
    assert [lr_factor(schedule, step, 3) for step in range(3)] == [0.5, 0.5, 0.5]
    constant = TypeAdapter(ScheduleConfig).validate_python(
        {"type": path_of(Steps), "warmup": 3, "options": {"amount": 0.9}}
    )
    assert [lr_factor(constant, step, 5) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 0.9, 0.9])


def test_gates_of_the_command_line() -> None:
    gate = parse_gate(f'{{"type": "{path_of(Never)}", "options": {{"amount": 2}}}}')
    assert isinstance(gate, CustomGateConfig)
    assert isinstance(GATES.build(gate), Never)
    assert isinstance(parse_gate(path_of(Never)), CustomGateConfig)
    assert parse_gate('{"type": "no_regression", "tolerance": 0.02}') == NoRegressionConfig(tolerance=0.02)
    with pytest.raises(SpecError, match="did you mean no_regression"):
        parse_gate("no_regresion")
    with pytest.raises(SpecError, match="tolerance: must be at least 0, not -1"):
        parse_gate('{"type": "no_regression", "tolerance": -1}')


def test_schema_of_a_custom_part() -> None:
    schema = custom_part_schema(path_of(Doubling))
    assert schema["properties"]["type"]["const"] == path_of(Doubling)
    assert schema["$defs"]["Amount"]["properties"]["amount"]["default"] == 0.5
    assert {"dim", "standardize"} <= schema["properties"].keys()
    with pytest.raises(SpecError, match="not a subclass of any of: rayfuse.modalities.base.Modality"):
        custom_part_schema("os:path")


@pytest.mark.parametrize(
    ("type_", "message"),
    [
        (path_of(Halve), "not a subclass of rayfuse.registry.gates.base.Gate"),
        (f"{__name__}:Absent", "has no `Absent`"),
        ("no_such_package:Gate", "No module named 'no_such_package'; install"),
    ],
)
def test_an_import_path_that_is_not_a_part(type_: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        GATES.build(CustomGateConfig(type=type_))


def test_options_of_a_custom_part_are_validated() -> None:
    with pytest.raises(SpecError, match="options.amuont: unknown key; did you mean amount?"):
        GATES.build(CustomGateConfig(type=path_of(Never), options={"amuont": 1}))
