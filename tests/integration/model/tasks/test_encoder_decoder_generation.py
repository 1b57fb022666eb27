"""Generation tasks over encoder–decoder models: prompts in the encoder, replies in the decoder."""

from pathlib import Path
from typing import Any

import pytest
import tiny_generation
import tiny_language_models
import torch

from rayfuse.data.collate import Batch, collate
from rayfuse.data.samples import Preprocessor
from rayfuse.data.targets import check_targets
from rayfuse.errors import DataError
from rayfuse.model.explain import explain
from rayfuse.model.fused import FusedModel, task_heads


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generation")
    tiny_generation.make_rows(folder)
    for family, write in tiny_language_models.ENCODER_DECODERS.items():
        tiny_language_models.randomize(write(folder / family))
    return folder


def build(folder: Path, family: str, **options: Any) -> tuple[Any, FusedModel, Batch]:
    job, batch = tiny_generation.load_batch(tiny_generation.generation_job(folder, family, options))
    torch.manual_seed(0)
    model = FusedModel(job).eval()
    torch.nn.init.normal_(model.tasks["answer"].projector.weight, std=0.3)  # type: ignore[union-attr]
    return job, model, batch


def sources(model: FusedModel, batch: Batch) -> list[torch.Tensor]:
    """Return the embeddings of each row's prompt, float (1, length, width), with the tokenizer's own end token."""
    head: Any = task_heads(model)["answer"]
    fused = model.fuse(model.encode(batch), batch)
    tokens, mask = fused["inputs"]["image"]
    tokenizer, found = head.renderer.tokenizer, []
    whole = tokenizer("a")["input_ids"]
    before, after = whole[:-2], whole[-1:]
    for row in range(len(batch.weights)):
        text = fused["texts"]["text"][row] if fused["inputs"]["text"][1][row].any() else None
        words = "" if text is None else bytes(text[text >= 0].tolist()).decode()[:8]
        asked = f"Asked: {words} Answer."
        parts = [head.lm.embed(torch.tensor(before).long())]
        if mask[row].any():
            parts += [
                head.projector(tokens[row][mask[row]]),
                head.lm.embed(torch.tensor(tokenizer(asked, add_special_tokens=False)["input_ids"])),
            ]
        else:
            parts += [head.lm.embed(torch.tensor(tokenizer(asked, add_special_tokens=False)["input_ids"]))]
        found.append(torch.cat([*parts, head.lm.embed(torch.tensor(after))]).unsqueeze(0))
    return found


@pytest.mark.parametrize("family", tiny_language_models.ENCODER_DECODERS)
def test_losses_and_tokens_are_those_of_each_row_alone(family: str, folder: Path) -> None:
    _, model, batch = build(folder, family)
    head: Any = task_heads(model)["answer"]
    prompt = [256] if "t5" in family else [257, 256]
    replies = set()
    with torch.no_grad():
        outputs = model(batch).tasks["answer"]
        generated = model(batch, generate=True).tasks["answer"]
        for row, source in enumerate(sources(model, batch)):
            target = batch.targets["answer"][row]
            reply = target[~target.isnan()].long()
            decoder_ids = torch.tensor([[*prompt, *reply[:-1].tolist()]])
            logits = head.lm.transformer(inputs_embeds=source, decoder_input_ids=decoder_ids).logits[0]
            wanted = torch.nn.functional.cross_entropy(logits[len(prompt) - 1 :], reply, reduction="sum")
            torch.testing.assert_close(outputs[row, 0], wanted, rtol=1e-4, atol=1e-3)
            assert outputs[row, 1] == len(reply)
            tokens = head.lm.transformer.generate(
                inputs_embeds=source,
                decoder_input_ids=torch.tensor([prompt]),
                decoder_start_token_id=prompt[0],
                max_new_tokens=12,
                eos_token_id=257,
                pad_token_id=257,
                do_sample=False,
            )[0, len(prompt) :].tolist()
            found = generated[row][~generated[row].isnan()].long().tolist()
            assert found == tokens
            replies.add(tuple(found))
    assert len(replies) > 1


def test_beams_read_the_same_prompts(folder: Path) -> None:
    """A beam search decodes with transformers, from the states of the whole batch."""
    _, model, batch = build(folder, "t5", decoding={"num_beams": 2})
    head: Any = task_heads(model)["answer"]
    with torch.no_grad():
        generated = model(batch, generate=True).tasks["answer"]
        for row, source in enumerate(sources(model, batch)):
            tokens = head.lm.transformer.generate(
                inputs_embeds=source,
                decoder_input_ids=torch.tensor([[256]]),
                decoder_start_token_id=256,
                max_new_tokens=12,
                num_beams=2,
                eos_token_id=257,
                pad_token_id=257,
            )[0, 1:]
            found = generated[row][~generated[row].isnan()].long()
            assert found.tolist() == tokens[: len(found)].tolist()
            assert set(tokens[len(found) :].tolist()) <= {257}


@pytest.mark.parametrize("train", ["lora", "full"])
def test_rows_without_inputs_reach_every_parameter(train: str, folder: Path) -> None:
    """Ranks whose rows lack an input would hang the others (DeepSpeed#7170)."""
    job, model, batch = build(folder, "t5", train=train)
    model.train()
    filler = collate([], Preprocessor(job.inputs, job.tasks).modalities, add_dummies=True)
    subsets = [batch.select_inputs(names) for names in (["text"], ["image"], [])]
    for chosen in (*subsets, filler):
        model.zero_grad()
        model.total_loss(model.losses(model(chosen), chosen), chosen).backward()
        assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_source_and_target_have_limits_of_their_own(folder: Path) -> None:
    _, model, _ = build(folder, "bart")
    head: Any = task_heads(model)["answer"]
    head.check_context({"image": 60})
    with pytest.raises(
        DataError, match=r"prompt and soft tokens take up to \d+ tokens, above the 128 positions"
    ):
        head.check_context({"image": 128})
    job = tiny_generation.generation_job(folder, "bart", {"max_tokens": 128})
    with pytest.raises(
        DataError,
        match=r"tasks\.answer\.model: a reply takes up to 129 tokens, above the 128 positions of the decoder of "
        r".*bart; lower max_tokens of the task to 127",
    ):
        check_targets(job)
    _, model, batch = build(folder, "bart", max_tokens=200)
    with pytest.raises(DataError, match="above the 128 positions of the decoder"):
        model(batch, generate=True)
    job = tiny_generation.generation_job(folder, "t5", {"max_tokens": 4096})
    check_targets(job)


def test_a_model_without_a_start_token_is_an_error(folder: Path, tmp_path: Path) -> None:
    import json

    path = tiny_language_models.bart(tmp_path / "bart")
    for name in ("config.json", "generation_config.json"):
        content = json.loads((path / name).read_text())
        content["decoder_start_token_id"] = None
        (path / name).write_text(json.dumps(content))
    job = tiny_generation.generation_job(folder, "bart", {"model": str(path)})
    with pytest.raises(DataError, match=r"its configuration has no decoder_start_token_id; set it in config"):
        check_targets(job)


def test_inputs_have_contributions_to_a_reply(folder: Path) -> None:
    job, model, batch = build(folder, "bart")
    found = explain(model, batch, Preprocessor(job.inputs).modalities)
    assert found.contributions["answer"].shap_values.shape == (len(batch.weights), 2)
