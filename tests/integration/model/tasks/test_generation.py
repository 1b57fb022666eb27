"""Generation heads: soft tokens in prompts, losses of replies, absent inputs."""

from pathlib import Path
from typing import Any

import pytest
import tiny_generation
import tiny_language_models
import torch

from rayfuse.data.collate import Batch, collate
from rayfuse.data.samples import Preprocessor
from rayfuse.errors import DataError
from rayfuse.model.evaluation import (
    collect_outputs,
    compute_metrics,
    decoded_subsets,
    details,
    nonempty_subsets,
)
from rayfuse.model.explain import explain
from rayfuse.model.fused import FusedModel, task_heads


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generation")
    tiny_generation.make_rows(folder)
    return folder


def build(folder: Path, family: str = "smollm", **options: Any) -> tuple[Any, FusedModel, Batch]:
    job, batch = tiny_generation.load_batch(tiny_generation.generation_job(folder, family, options))
    torch.manual_seed(0)
    return job, FusedModel(job).eval(), batch


def one_by_one(model: FusedModel, batch: Batch) -> list[float]:
    """Return the loss of each row, from the whole model on the row's own embeddings."""
    head: Any = task_heads(model)["answer"]
    fused = model.fuse(model.encode(batch), batch)
    tokens, mask = fused["inputs"]["image"]
    losses = []
    for row, target in enumerate(batch.targets["answer"]):
        reply = target[~target.isnan()].long()
        text = fused["texts"]["text"][row] if fused["inputs"]["text"][1][row].any() else None
        texts = {} if text is None else {"text": bytes(text[text >= 0].tolist()).decode()}
        spans = {"image"} if mask[row].any() else set()
        parts = [
            head.projector(tokens[row][mask[row]])
            if isinstance(piece, str)
            else head.lm.embed(torch.tensor(piece).long())
            for piece in head.renderer.render(texts, spans)
        ]
        prompt = torch.cat(parts)
        whole = torch.cat([prompt, head.lm.embed(reply)]).unsqueeze(0)
        logits = head.lm.transformer(inputs_embeds=whole).logits[0, len(prompt) - 1 : -1]
        losses.append(float(torch.nn.functional.cross_entropy(logits, reply, reduction="sum")))
    return losses


@pytest.mark.parametrize("family", tiny_language_models.FAMILIES)
def test_losses_are_those_of_each_row_alone(family: str, folder: Path) -> None:
    """Rows differ in length and lack inputs; the end token counts, also where it is the padding token (trl#1623)."""
    _, model, batch = build(folder, family)
    with torch.no_grad():
        outputs = model(batch).tasks["answer"]
        wanted = one_by_one(model, batch)
    torch.testing.assert_close(outputs[:, 0], torch.tensor(wanted), rtol=1e-4, atol=1e-4)
    lengths = (~batch.targets["answer"].isnan()).sum(1)
    assert outputs[:, 1].tolist() == lengths.tolist()
    assert len(set(lengths.tolist())) > 1
    head = task_heads(model)["answer"]
    assert head.loss_weights(batch.targets["answer"]).tolist() == lengths.tolist()


@pytest.mark.parametrize("family", ["smollm", "gpt2"])
def test_generated_texts_do_not_depend_on_the_rest_of_the_batch(family: str, folder: Path) -> None:
    job, model, batch = build(folder, family)
    head = task_heads(model)["answer"]
    with torch.no_grad():
        together = head.format_predictions(model(batch, generate=True).tasks["answer"])
        for row in range(4):
            _, alone = tiny_generation.load_batch(job, [row])
            assert head.format_predictions(model(alone, generate=True).tasks["answer"]) == [together[row]]


def test_filler_rows_have_no_loss_and_reach_every_parameter(folder: Path) -> None:
    job, model, _ = build(folder, "smollm", train="full")
    model.train()
    filler = collate([], Preprocessor(job.inputs, job.tasks).modalities, add_dummies=True)
    losses = model.losses(model(filler), filler)
    assert losses.tasks["answer"].detach() == 0
    model.total_loss(losses, filler).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or p.grad.any()]


def test_rows_without_an_input_reach_every_parameter(folder: Path) -> None:
    """Ranks whose rows lack an input would hang the others (DeepSpeed#7170)."""
    _, model, batch = build(folder, "smollm", train="lora")
    model.train()
    for chosen in (batch.select_inputs(["text"]), batch.select_inputs(["image"]), batch.select_inputs([])):
        model.zero_grad()
        model.total_loss(model.losses(model(chosen), chosen), chosen).backward()
        assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_evaluation_decodes_all_inputs_and_without_each(folder: Path) -> None:
    job, model, batch = build(folder, "smollm", metrics=["exact", "bleu", "cider"], references="photo")
    heads, inputs = task_heads(model), ["image", "text"]
    subsets, decoded = nonempty_subsets(inputs), decoded_subsets(heads, inputs)
    assert decoded == [("image", "text"), ("image",), ("text",)]
    for outputs in collect_outputs(model, heads, [batch], subsets, decoded):
        metrics = compute_metrics(heads, job, outputs)
        assert set(metrics) == set(job.metric_modes())
        assert metrics["answer/perplexity"] == pytest.approx(
            min(1e6, float(torch.tensor(metrics["answer/loss"]).exp())), rel=1e-4
        )
        assert len(details(heads, outputs)["answer"]["replies"]) == len(batch.weights)
    [without] = collect_outputs(model, heads, [batch], [()], [])
    assert "answer/exact" not in compute_metrics(heads, job, without)


def test_a_model_of_one_input_is_also_evaluated_without_it(folder: Path) -> None:
    prompt = {"prompt": "{image}", "metrics": ["exact"]}
    image = {"type": "image", "size": 8, "encoder": {"type": "conv", "hidden_size": 4}, "optional": True}
    overrides = {"inputs": {"image": image}, "data.max_bad_rows": 1}
    job, batch = tiny_generation.load_batch(
        tiny_generation.generation_job(folder, "smollm", prompt, **overrides)
    )
    model = FusedModel(job).eval()
    heads = task_heads(model)
    subsets = decoded_subsets(heads, ["image"])
    assert subsets == [("image",), ()]
    complete, blind = collect_outputs(model, heads, [batch], subsets, subsets)
    found = details(heads, complete, blind)["answer"]
    assert found["without_inputs"] == heads["answer"].reply_metrics(blind.replies["answer"])
    assert len({row.text for row in blind.replies["answer"].rows}) == 1


def test_a_sequence_beyond_the_positions_is_an_error(folder: Path) -> None:
    _, model, _ = build(folder, "gpt2")
    head: Any = task_heads(model)["answer"]
    head.check_context({"image": 1})
    with pytest.raises(DataError, match=r"take up to \d+ tokens, above the 256 positions of .*gpt2; lower"):
        head.check_context({"image": 256})
    _, model, batch = build(folder, "gpt2", max_tokens=300)
    with pytest.raises(DataError, match="above the 256 positions"):
        model(batch, generate=True)


def test_inputs_have_contributions_to_a_reply(folder: Path) -> None:
    job, model, batch = build(folder, "smollm", references="photo")
    found = explain(model, batch, Preprocessor(job.inputs).modalities)
    contributions = found.contributions["answer"]
    assert contributions.shap_values.shape == (len(batch.weights), 2)
    head = task_heads(model)["answer"]
    with torch.no_grad():
        generated = model(batch, generate=True).tasks["answer"]
        targets = {"answer": head.as_targets(generated)}
        scores = model.apply_heads(model.fuse(model.encode(batch), batch), targets)["answer"]
    torch.testing.assert_close(found.outputs["answer"], generated, equal_nan=True)
    wanted = -scores[:, 0] / (~generated.isnan()).sum(1)
    assert contributions.value == pytest.approx(wanted.numpy(), rel=1e-4)
