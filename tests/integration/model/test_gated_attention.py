"""Gated cross-attention layers: the bare language model at first, rows without inputs, decoding in slots, and gradients."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_generation
import tiny_language_models
import torch
from greedy_replies import replies
from transformers import AutoModelForCausalLM

from rayfuse.data.samples import Preprocessor
from rayfuse.decoding.decoder import Decoder
from rayfuse.decoding.input_memory import InputMemory
from rayfuse.decoding.request import ContextLengthError, SamplingParams
from rayfuse.errors import SpecError
from rayfuse.model.explain import explain
from rayfuse.model.fused import FusedModel, trainable_parameters
from rayfuse.model.slot_decoding import slot_runner

OTHER_INPUT = {
    "type": "image",
    "size": 8,
    "column": "image",
    "encoder": tiny_generation.PATCHES,
    "optional": True,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gated")
    tiny_generation.make_rows(folder)
    for family in tiny_language_models.FAMILIES.values():
        tiny_language_models.randomize(family(folder / family.__name__))
    return folder


def make_job(folder: Path, family: str = "smollm", **overrides: Any) -> Any:
    options = {"inputs.image.encoder": tiny_generation.PATCHES, **overrides}
    return tiny_generation.generation_job(folder, family, tiny_generation.CROSS_ATTENTION, **options)


def build(folder: Path, family: str = "smollm", **overrides: Any) -> tuple[Any, Any, Any]:
    """Return a model with closed gates, its head, and a batch of rows of which some lack the image and some the text."""
    job, batch = tiny_generation.load_batch(make_job(folder, family, **overrides))
    torch.manual_seed(0)
    model = FusedModel(job).eval()
    return model, model.tasks["answer"], batch


def has_image(batch: Any) -> torch.Tensor:
    return batch.inputs["image"].index[:, 0] >= 0


def loss_of(model: Any, batch: Any) -> torch.Tensor:
    return model.total_loss(model.losses(model(batch), batch), batch)


@pytest.mark.parametrize("family", tiny_language_models.FAMILIES)
@torch.no_grad()
def test_a_new_model_computes_what_the_bare_language_model_does(family: str, folder: Path) -> None:
    model, head, batch = build(folder, family)
    with head.cross_attention.switched_off():
        bare = model(batch).tasks["answer"]
    assert torch.equal(model(batch).tasks["answer"], bare)
    fused = model.fuse(model.encode(batch), batch)
    plain = AutoModelForCausalLM.from_pretrained(folder / family)
    stop_ids = head.stop_ids
    for row, inputs in enumerate(head.reading.inputs(fused)):
        [ids] = head.reading.request(inputs).prompt
        wanted = plain.generate(
            torch.tensor([ids]),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=stop_ids,
            pad_token_id=stop_ids[0],
        )[0, len(ids) :]
        found = head.reading.decode(fused, stop_ids)[row]
        assert found[: len(wanted)].tolist() == wanted.tolist()


@pytest.mark.parametrize("family", tiny_language_models.FAMILIES)
@torch.no_grad()
def test_rows_without_an_image_stay_unchanged_and_replies_do_not_depend_on_the_batch(
    family: str, folder: Path
) -> None:
    model, head, batch = build(folder, family)
    tiny_generation.open_gates(model)
    with head.cross_attention.switched_off():
        bare = model(batch).tasks["answer"]
    outputs = model(batch).tasks["answer"]
    present = has_image(batch)
    assert {True, False} == set(present.tolist())
    assert torch.equal(outputs[~present], bare[~present])
    assert not torch.isclose(outputs[present, 0], bare[present, 0], rtol=1e-3).any()
    fused = model.fuse(model.encode(batch), batch)
    decoded = head.reading.decode(fused, head.stop_ids)
    generated = head.reading.generate(fused, head.stop_ids)
    assert torch.equal(decoded, generated)
    with head.cross_attention.switched_off():
        assert not torch.equal(head.reading.decode(fused, head.stop_ids), decoded)


@torch.no_grad()
def test_requests_that_join_a_batch_get_the_tokens_of_plain_forward_passes(folder: Path) -> None:
    model, head, batch = build(folder)
    tiny_generation.open_gates(model)
    fused = model.fuse(model.encode(batch), batch)
    inputs = head.reading.inputs(fused)
    assert {one.attended is None for one in inputs} == {True, False}
    params = SamplingParams(max_tokens=10, ignore_eos=True)
    # The last two begin like an earlier one: keys and values are reused only where the image is the same.
    order = [*range(len(inputs)), 0, 1]
    requests = [replace(head.reading.request(inputs[number]), params=params) for number in order]
    wanted = [by_full_passes(head, requests[number], 10) for number in range(len(requests))]
    assert len({tuple(one) for one in wanted}) > 2
    longest = max(len(one.attended) for one in inputs if one.attended is not None)
    runner = slot_runner(head.lm, head.options.decoding)
    assert runner is not None
    decoder = Decoder(runner, max_slots=3, max_length=128, max_source_length=longest, prefill_tokens=16)
    assert replies(decoder, requests) == wanted
    short = Decoder(runner, max_length=128, max_source_length=longest - 1)
    with pytest.raises(ContextLengthError, match=f"source has {longest} positions"):
        short.submit(requests[0])


def by_full_passes(head: Any, request: Any, count: int) -> list[int]:
    """Return the greedy tokens of forward passes over the whole sequence, without a cache."""
    [ids] = request.prompt
    memory = None
    if request.encoder_states is not None:
        tokens = request.encoder_states[None]
        memory = InputMemory(
            head.cross_attention.keys_values(tokens), torch.ones(tokens.shape[:2], dtype=torch.bool)
        )
    sequence = list(ids)
    for _ in range(count):
        with head.cross_attention.attend(memory):
            logits = head.lm.transformer(torch.tensor([sequence]), use_cache=False).logits
        sequence.append(int(logits[0, -1].argmax()))
    return sequence[len(ids) :]


@torch.no_grad()
def test_beams_attend_to_the_inputs_of_their_row(folder: Path) -> None:
    model, head, batch = build(folder, **{"tasks.answer.decoding": {"num_beams": 3}})
    tiny_generation.open_gates(model)
    assert slot_runner(head.lm, head.options.decoding) is None
    job = make_job(folder)
    found = model.fuse(model.encode(batch), batch)
    texts = head.format_predictions(head.generate(found))
    assert len({text["text"] for text in texts}) > 2
    for row in range(4):
        _, alone = tiny_generation.load_batch(job, [row])
        fused = model.fuse(model.encode(alone), alone)
        assert head.format_predictions(head.generate(fused)) == [texts[row]]


def test_contributions_of_an_image_come_from_the_gated_layers(folder: Path) -> None:
    model, _, batch = build(folder)
    modalities = Preprocessor(make_job(folder).inputs).modalities

    def contributions() -> Any:
        """Return those of the image, by row."""
        return explain(model, batch, modalities).contributions["answer"].shap_values[:, 0]

    assert not contributions().any()
    tiny_generation.open_gates(model)
    assert ((contributions() != 0) == has_image(batch).numpy()).all()


def test_gates_learn_in_the_first_step_and_the_rest_after_it(folder: Path) -> None:
    model, head, batch = build(folder)
    model.train()
    gated = dict(head.cross_attention.named_parameters())
    optimizer = torch.optim.SGD(trainable_parameters(model).values(), lr=0.01)
    loss_of(model, batch).backward()
    for name, parameter in gated.items():
        assert bool(parameter.grad.abs().sum() > 0) == ("gate" in name), name
    optimizer.step()
    optimizer.zero_grad()
    loss_of(model, batch).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in gated.values())
    model.eval()
    with torch.no_grad():
        outputs = model(batch).tasks["answer"]
        without = model(batch.select_inputs(["text"])).tasks["answer"]
    assert torch.equal((outputs != without).any(dim=1), has_image(batch))


def test_several_inputs_are_told_apart(folder: Path) -> None:
    """The tokens of an image count as those of the input that it is given for."""
    model, head, batch = build(folder, **{"inputs.other": OTHER_INPUT})
    tiny_generation.open_gates(model)
    with torch.no_grad():
        head.cross_attention.tokens.input_embeddings.normal_()
        model.encoders["other"].load_state_dict(model.encoders["image"].state_dict())
        model.alignment["other"].load_state_dict(model.alignment["image"].state_dict())
        first, second = (
            model(batch.select_inputs([name, "text"])).tasks["answer"][has_image(batch)]
            for name in ("image", "other")
        )
    assert not torch.isclose(first[:, 0], second[:, 0]).any()


@pytest.mark.parametrize(("inputs", "count"), [([], 1), (None, 2)], ids=["alone", "with the image"])
def test_the_fused_vector_is_one_more_token(inputs: list[str] | None, count: int, folder: Path) -> None:
    inject = {**tiny_generation.CROSS_ATTENTION["inject"], "inputs": inputs, "fused": True}
    fusion = {"type": "concat", "hidden": 8, "layers": 1}
    model, head, batch = build(folder, **{"tasks.answer.inject": inject, "fusion": fusion})
    tiny_generation.open_gates(model)
    assert len(head.cross_attention.tokens.input_embeddings) == count
    assert head.text_decoding.attends_fused
    for chosen in (["text"], [], list(batch.inputs)):
        part = batch.select_inputs(chosen)
        fused = model.fuse(model.encode(part), part)
        present = torch.cat([one.index >= 0 for one in part.inputs.values()], dim=1).any(dim=1)
        attended = [one.attended is not None for one in head.reading.inputs(fused)]
        assert attended == present.tolist()
        decoded = head.reading.decode(fused, head.stop_ids)
        assert torch.equal(decoded, head.reading.generate(fused, head.stop_ids))
    loss_of(model, batch).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.fusion.parameters())


@pytest.mark.parametrize("family", ["smollm", "gpt2"])
def test_slots_hold_what_autocast_computes(family: str, folder: Path) -> None:
    model, head, batch = build(folder, family)
    tiny_generation.open_gates(model)
    fused = model.fuse(model.encode(batch), batch)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = head.reading.decode(fused, head.stop_ids)
        assert model(batch).tasks["answer"].isfinite().all()
    assert found.shape[0] == len(has_image(batch))


def test_models_that_cannot_have_gated_layers_are_rejected(folder: Path) -> None:
    with pytest.raises(
        SpecError, match=r"inject: cross_attention needs a causal .*/t5 is an encoder–decoder model"
    ):
        build(folder, "t5")
    with pytest.raises(SpecError, match=r"inject\.every: 3 is above the 2 layers of .*smollm; use 2 or less"):
        build(folder, **{"tasks.answer.inject": {"type": "cross_attention", "every": 3}})
