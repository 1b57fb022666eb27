"""Dialogues in generation heads: losses of replies in all turns, decoding, and equality with the chat template."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_encoders
import tiny_generation
import tiny_jobs
import tiny_language_models
import torch

from rayfuse.data.cached_features import TOKENS
from rayfuse.data.collate import Batch, collate
from rayfuse.data.dataset import load_dataset
from rayfuse.errors import InvalidInputError
from rayfuse.estimate.simulation import Simulation
from rayfuse.estimate.synthetic_batch import with_assumed_statistics
from rayfuse.evaluation.evaluate import evaluate_folder
from rayfuse.modalities.prompt_pieces import FileSpan, ReplyIds
from rayfuse.model.explain import explain
from rayfuse.model.fused import FusedModel, task_heads, trainable_parameters
from rayfuse.model.predictor import Predictor
from rayfuse.training.distributed import DistributedContext
from rayfuse.training.training_data import TrainingData

ONLY = {"prompt": "{messages}"}
MESSAGES = {"type": "chat", "max_tokens": 130}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dialogues")
    tiny_generation.make_dialogues(folder)
    return folder


def build(
    folder: Path, family: str = "smollm", task: Any = None, **overrides: Any
) -> tuple[Any, FusedModel, Batch]:
    job, batch = tiny_generation.load_batch(tiny_generation.dialogue_job(folder, family, task, **overrides))
    torch.manual_seed(0)
    return job, FusedModel(job).eval(), batch


def rows(folder: Path, name: str = "train") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "data" / f"{name}.jsonl").read_text().splitlines()]


def labels_by_template(tokenizer: Any, messages: list[dict[str, str]], learned: str) -> tuple[Any, list[int]]:
    """Return the tokens of a dialogue and of its replies, -100 elsewhere, by rendering each prefix of the dialogue."""
    ids = tokenizer.apply_chat_template(messages)["input_ids"]
    labels = [-100] * len(ids)
    for number, message in enumerate(messages):
        if message["role"] != "assistant" or (learned == "last" and number < len(messages) - 1):
            continue
        before = tokenizer.apply_chat_template(messages[:number], add_generation_prompt=True)["input_ids"]
        behind = tokenizer.apply_chat_template(messages[: number + 1])["input_ids"]
        end = max(place for place, token in enumerate(behind) if tokenizer.decode([token]) != "\n") + 1
        labels[len(before) : end] = ids[len(before) : end]
    return torch.tensor(ids), labels


@pytest.mark.parametrize("learned", ["last", "all"])
@pytest.mark.parametrize("family", ["smollm", "qwen"])
def test_losses_are_those_of_the_replies_in_the_rendered_dialogue(
    family: str, learned: str, folder: Path
) -> None:
    """Each reply with its end token, whatever stands between them, without a generation marker (trl#5471)."""
    overrides = {"inputs": {"messages": {**MESSAGES, "max_tokens": 250}}}
    job = tiny_generation.dialogue_job(folder, family, {**ONLY, "learned_replies": learned}, **overrides)
    job, dataset = load_dataset(job)
    _, batch = tiny_generation.load_batch(job)
    torch.manual_seed(0)
    model = FusedModel(job).eval()
    head: Any = task_heads(model)["reply"]
    with torch.no_grad():
        outputs = model(batch).tasks["reply"]
        for row, (found, source) in enumerate(zip(outputs, dataset.splits["train"], strict=True)):
            ids, labels = labels_by_template(head.renderer.tokenizer, source.values["messages"], learned)
            logits = head.lm.transformer(input_ids=ids.unsqueeze(0)).logits[0, :-1]
            wanted = torch.nn.functional.cross_entropy(logits, torch.tensor(labels[1:]), reduction="sum")
            assert float(found[0]) == pytest.approx(float(wanted), rel=1e-4)
            num_tokens = sum(label >= 0 for label in labels)
            assert found[1] == num_tokens == head.loss_weights(batch.targets["reply"])[row]
            assert job.tasks["reply"].loss_weight([0.0] * num_tokens) == num_tokens
    assert len(set(outputs[:, 1].tolist())) > 1


def test_truncation_drops_replies_from_the_loss_and_from_its_weight(folder: Path) -> None:
    """The weight is known from validation, before prompts are rendered."""
    task = {"learned_replies": "all"}
    counts = []
    for max_tokens in (100, 250):
        _, model, batch = build(folder, "smollm", task, **{"inputs.messages.max_tokens": max_tokens})
        head: Any = task_heads(model)["reply"]
        with torch.no_grad():
            outputs = model(batch).tasks["reply"]
        torch.testing.assert_close(outputs[:, 1], head.loss_weights(batch.targets["reply"]))
        counts.append(outputs[:, 1])
    assert (counts[0] <= counts[1]).all()
    assert (counts[0] < counts[1]).any()


@pytest.mark.parametrize("learned", ["last", "all"])
def test_a_step_reaches_every_parameter(learned: str, folder: Path) -> None:
    _, model, batch = build(folder, "smollm", {"learned_replies": learned})
    model.train()
    optimizer = torch.optim.AdamW(trainable_parameters(model).values(), 0.01)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model.total_loss(model.losses(model(batch), batch), batch)
        loss.backward()
        assert not [name for name, one in trainable_parameters(model).items() if one.grad is None]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[2] < losses[0]
    absent = batch.select_inputs(["image"])
    assert torch.isfinite(model(absent).tasks["reply"]).all()


@pytest.mark.parametrize("family", ["smollm", "qwen"])
def test_replies_are_those_of_generate_on_the_rendered_dialogue(
    family: str, folder: Path, tmp_path: Path
) -> None:
    tiny_generation.make_dialogues(tmp_path)
    tiny_language_models.randomize(tiny_language_models.ALL[family](tmp_path / family))
    job = tiny_generation.dialogue_job(
        tmp_path, family, ONLY, inputs={"messages": {**MESSAGES, "max_tokens": 250}}
    )
    predictor = Predictor(tiny_jobs.make_model_folder(tmp_path, 0, job=job))
    head: Any = task_heads(predictor.model)["reply"]
    dialogues = [row["messages"][:-1] for row in rows(tmp_path)]
    found = predictor.predict_rows([{"messages": messages} for messages in dialogues])
    assert len({one["outputs"]["reply"]["text"] for one in found}) > 1
    for messages, prediction in zip(dialogues, found, strict=True):
        ids = head.renderer.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt"
        )["input_ids"]
        generated = head.lm.transformer.generate(
            ids, max_new_tokens=12, do_sample=False, eos_token_id=head.stop_ids, pad_token_id=head.stop_ids[0]
        )
        assert prediction["outputs"]["reply"]["text"] == head.renderer.decode(
            generated[0, ids.shape[1] :].tolist()
        )


def test_rows_with_their_reply_are_predicted_as_those_without(folder: Path, tmp_path: Path) -> None:
    job = tiny_generation.dialogue_job(folder, "smollm")
    predictor = Predictor(tiny_jobs.make_model_folder(tmp_path, 0, job=job))
    complete = rows(folder, "test")
    asked = [{**row, "messages": row["messages"][:-1]} for row in complete]
    texts = [
        [one["outputs"]["reply"]["text"] for one in predictor.predict_rows(given, str(folder / "data"))]
        for given in (complete, asked)
    ]
    assert texts[0] == texts[1]
    output = tmp_path / "out.jsonl"
    found = evaluate_folder(tmp_path / "model", job.data.test, batch_size=4, output=str(output))
    assert [reply["text"] for reply in found["details"]["reply"]["replies"]] == texts[0]
    recorded = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["reply_target"] for row in recorded] == [row["messages"][-1]["content"] for row in complete]
    with pytest.raises(InvalidInputError, match=r"^row 1: messages: \[0\]\.role: 'tool' is no role"):
        predictor.predict_rows([{"messages": asked[0]["messages"]}, {"messages": [{"role": "tool"}]}])
    long = {"messages": [{"role": "user", "content": "a" * 200}]}
    with pytest.raises(InvalidInputError, match=r"^row 0: messages: \[0\]: .*exceeds max_tokens 130"):
        predictor.predict_rows([long])


def test_images_in_messages_are_soft_tokens_in_their_place(tmp_path: Path) -> None:
    tiny_generation.make_dialogues_with_images(tmp_path)
    options = {
        "inputs": tiny_generation.inputs_with_parts(),
        "align": {"type": "transformer", "dim": 16, "num_queries": 2, "heads": 2},
    }
    job, model, batch = build(tmp_path, "smollm", {"prompt": None, "learned_replies": "all"}, **options)
    assert batch.inputs["image"].index.shape[1] == 3
    head: Any = task_heads(model)["reply"]
    torch.nn.init.normal_(head.projector.weight, std=0.5)
    with torch.no_grad():
        fused = model.fuse(model.encode(batch), batch)
        outputs = model(batch).tasks["reply"]
        vectors, mask = fused["inputs"]["image"]
        soft = head.projector(vectors).unflatten(1, (3, 2))
        for row, texts in enumerate(head.reading.layout.texts(fused)):
            pieces = head.renderer.render(texts, {"image"} if mask[row].any() else set())
            files = [piece.item for piece in pieces if isinstance(piece, FileSpan)]
            assert files == list(range(int(mask[row].sum()) // 2))
            reply = head._replies(batch.targets["reply"][row : row + 1])[0][-1]
            inputs, labels = [], []
            for piece in [*pieces, ReplyIds(reply[:-1])]:
                ids = [-100, -100] if isinstance(piece, FileSpan) else piece
                inputs.append(
                    soft[row, piece.item]
                    if isinstance(piece, FileSpan)
                    else head.lm.embed(torch.tensor(piece).long())
                )
                labels += ids if isinstance(piece, ReplyIds) else [-100] * len(ids)
                if isinstance(piece, ReplyIds):
                    ends = len(labels)
                    labels.append(head.renderer.end_id)
                elif len(labels) > len(torch.cat(inputs)):
                    labels.pop(ends + 1)  # the end token is in this piece
            logits = head.lm.transformer(inputs_embeds=torch.cat(inputs).unsqueeze(0)).logits[0]
            wanted = torch.nn.functional.cross_entropy(logits, torch.tensor(labels[1:]), reduction="sum")
            assert float(outputs[row, 0]) == pytest.approx(float(wanted), rel=1e-4)
    assert (mask.sum(1) > 2).any()
    model.train()
    for chosen in (["messages"], ["image"]):
        model.zero_grad()
        part = batch.select_inputs(chosen)
        model.total_loss(model.losses(model(part), part), part).backward()
        assert not [name for name, one in trainable_parameters(model).items() if one.grad is None]
    predictor = Predictor(tiny_jobs.make_model_folder(tmp_path, 0, job=job))
    given = rows(tmp_path, "test")
    by_path = predictor.predict_rows(given, str(tmp_path / "data"))
    assert [one["inputs_used"] for one in by_path] == [
        ["messages", "image"]
        if any(
            len(message["content"]) > 2 and isinstance(message["content"], list)
            for message in row["messages"]
        )
        else ["messages"]
        for row in given
    ]
    with pytest.raises(InvalidInputError, match="image: expected the bytes of a file, got a path or URL"):
        predictor.predict_rows(given, None)
    path = [{"role": "user", "content": [{"type": "image", "image": "data.png"}]}]
    with pytest.raises(
        InvalidInputError, match=r"image: a part of a message must have its file as a data: URI"
    ):
        predictor.predict([{"messages": path}])
    with pytest.raises(
        InvalidInputError, match=r"image: 0 values, and the messages of `messages` have 1 parts of type image"
    ):
        predictor.predict([{"messages": [{"role": "user", "content": [{"type": "image"}]}]}])
    with pytest.raises(
        InvalidInputError,
        match=r"messages: a message has a part of type audio, and this model reads those of type image",
    ):
        predictor.predict([{"messages": [{"role": "user", "content": [{"type": "audio"}]}]}])


def test_images_in_messages_of_a_frozen_encoder_are_cached(tmp_path: Path) -> None:
    tiny_generation.make_dialogues_with_images(tmp_path)
    encoder = {"type": "huggingface", "model": str(tiny_encoders.vit(tmp_path / "vit")), "train": "frozen"}
    inputs = tiny_generation.inputs_with_parts()
    inputs["image"]["encoder"] = encoder
    options = {"inputs": inputs, "output.storage": str(tmp_path / "runs")}
    job, model, batch = build(tmp_path, "smollm", {"prompt": None}, **options)
    job, dataset = load_dataset(job)
    cached = TrainingData.prepare(job, dataset.splits, DistributedContext(), "fp32", lambda _: None)
    samples = [cached.sample_caches["train"][number] for number in range(len(dataset.splits["train"]))]
    stored = collate(samples, cached.modalities, add_dummies=True)
    assert TOKENS in stored.inputs["image"].features
    with torch.no_grad():
        torch.testing.assert_close(
            model(stored).tasks["reply"], model(batch).tasks["reply"], atol=1e-4, rtol=1e-4
        )


def test_a_plan_simulates_the_longest_dialogues(folder: Path, tmp_path: Path) -> None:
    tiny_generation.make_dialogues_with_images(tmp_path)
    task, queries = {"prompt": None, "train": "full"}, {"type": "transformer", "dim": 16, "heads": 2}
    flops = []
    for max_tokens, num_queries in ((60, 1), (200, 1), (60, 40)):
        options = {
            "inputs": tiny_generation.inputs_with_parts(),
            "align": {**queries, "num_queries": num_queries},
        }
        job = tiny_generation.dialogue_job(
            tmp_path, "smollm", task, **options, **{"inputs.messages.max_tokens": max_tokens}
        )
        fitted, _ = with_assumed_statistics(job)
        flops.append(Simulation(fitted, "fp32").simulate_step(4).flops)
    assert min(flops[1:]) > 1.5 * flops[0] > 0


def test_explanations_score_the_reply_alone(folder: Path) -> None:
    _, model, batch = build(folder, "smollm", {"learned_replies": "all"})
    found = explain(model, batch, tiny_generation.Preprocessor(build(folder)[0].inputs).modalities)
    head: Any = task_heads(model)["reply"]
    with torch.no_grad():
        generated = model(batch, generate=True).tasks["reply"]
        scores = model.apply_heads(
            model.fuse(model.encode(batch), batch), {"reply": head.as_targets(generated)}
        )
    assert scores["reply"][:, 1].tolist() == (~generated.isnan()).sum(1).tolist()
    assert found.contributions["reply"].value == pytest.approx(
        (-scores["reply"][:, 0] / scores["reply"][:, 1]).numpy(), rel=1e-4
    )
