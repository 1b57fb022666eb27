"""Decoding of prompts in slots, compared with `generate` of transformers."""

from pathlib import Path
from typing import Any

import pytest
import random_language_models
import tiny_language_models
import torch
from pydantic import TypeAdapter

from rayfuse.decoding.request import DecodeRequest
from rayfuse.model.language_model import CausalModel
from rayfuse.model.slot_decoding import decode_tokens, slot_runner
from rayfuse.spec.encoders import PretrainedModelConfig
from rayfuse.spec.tasks.generation import DecodingConfig

STOP = [257, 30]
"""A second end token, so that replies have different lengths."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def decoding(**options: Any) -> DecodingConfig:
    return TypeAdapter(DecodingConfig).validate_python(options)


def load(models: Path, family: str, train: str = "frozen") -> CausalModel:
    folder = models / family
    if not folder.exists():
        tiny_language_models.FAMILIES[family](folder)
    options = TypeAdapter(PretrainedModelConfig).validate_python({"model": str(folder), "train": train})
    return CausalModel(options).eval()


def prompts(model: CausalModel) -> list[list[Any]]:
    """Return prompts of tokens and soft tokens, of different lengths."""
    generator = torch.Generator().manual_seed(0)
    soft = [torch.randn(length, model.width, generator=generator) for length in (3, 1, 5)]
    return [[[1, 2, 3], soft[0], [4]], [[5, 6]], [soft[1], [7, 8, 9, 10]], [[11], soft[2], [12, 13]]]


@pytest.mark.parametrize("family", tiny_language_models.FAMILIES)
@pytest.mark.parametrize("train", ["frozen", "lora"])
def test_greedy_tokens_equal_those_of_generate(family: str, train: str, models: Path) -> None:
    model = load(models, family, train)
    asked = prompts(model)
    runner = slot_runner(model, decoding())
    assert runner is not None
    found = decode_tokens(runner, [DecodeRequest(one) for one in asked], STOP, 12, decoding())
    lengths = set()
    for row, spans in enumerate(asked):
        with torch.inference_mode():
            parts = [model.embed(torch.tensor(one)) if isinstance(one, list) else one for one in spans]
            embeddings = torch.cat(parts).unsqueeze(0)
            mask = torch.ones(embeddings.shape[:2], dtype=torch.bool)
            [wanted] = model.generate(embeddings, mask, STOP, 12, decoding()).tolist()
        assert found[row, : len(wanted)].tolist() == wanted
        assert set(found[row, len(wanted) :].tolist()) <= {STOP[0]}
        lengths.add(len(wanted))
    assert lengths


@pytest.mark.parametrize("family", ["smollm", "gpt2"])
def test_slots_hold_what_autocast_computes(family: str, models: Path) -> None:
    """Rotated keys are float32, values are not: as in the evaluation of a job with `train.precision: bf16`."""
    model = load(models, family, "lora")
    asked = [DecodeRequest(prompt) for prompt in prompts(model)]
    with torch.autocast("cpu", torch.bfloat16):
        runner: Any = slot_runner(model, decoding())
        found = decode_tokens(runner, asked, [257], 6, decoding())
    assert found.shape == (4, 6)
    runner = slot_runner(model, decoding())
    assert torch.equal(found, decode_tokens(runner, asked, [257], 6, decoding()))


def test_sampling_follows_the_random_numbers_of_torch(models: Path) -> None:
    model = load(models, "llama")
    runner: Any = slot_runner(model, decoding())
    sampled = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        sampled.append(
            decode_tokens(
                runner, [DecodeRequest([[1, 2]])] * 4, [257], 10, decoding(temperature=2.0)
            ).tolist()
        )
    assert sampled[0] == sampled[1] != sampled[2]
    assert len({tuple(row) for row in sampled[0]}) > 1


def test_a_runner_reads_the_weights_as_they_are(models: Path) -> None:
    model = load(models, "llama", "full")
    runner: Any = slot_runner(model, decoding())
    before = decode_tokens(runner, [DecodeRequest([[1, 2, 3]])], [257], 8, decoding())
    with torch.no_grad():
        model.transformer.get_output_embeddings().weight.neg_()
    assert slot_runner(model, decoding()) is runner
    assert (
        decode_tokens(runner, [DecodeRequest([[1, 2, 3]])], [257], 8, decoding()).tolist() != before.tolist()
    )
    model.double()
    assert slot_runner(model, decoding()) is not runner


def test_beams_and_layers_without_attention_have_no_slots(models: Path) -> None:
    assert slot_runner(load(models, "llama"), decoding(num_beams=2)) is None
    random_language_models.mamba().save_pretrained(models / "mamba")
    options = TypeAdapter(PretrainedModelConfig).validate_python(
        {"model": str(models / "mamba"), "train": "frozen"}
    )
    assert slot_runner(CausalModel(options), decoding()) is None
