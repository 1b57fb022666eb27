"""Generation tasks that transcribe an input with the decoder of a speech model."""

from pathlib import Path
from typing import Any

import pytest
import tiny_generation
import tiny_language_models
import torch
from transformers import GenerationMixin, WhisperForConditionalGeneration

from rayfuse.data.collate import Batch, collate
from rayfuse.data.samples import Preprocessor
from rayfuse.data.targets import check_targets
from rayfuse.errors import DataError
from rayfuse.modalities.base import Modality
from rayfuse.model.evaluation import collect_outputs, compute_metrics
from rayfuse.model.explain import explain
from rayfuse.model.fused import FusedModel, task_heads

PROMPT = [262, 263, 265, 267]
"""<|startoftranscript|>, <|en|>, <|transcribe|> and <|notimestamps|>."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    tiny_generation.make_speech_rows(folder)
    tiny_language_models.randomize(tiny_language_models.whisper(folder / "whisper"), std=0.4)
    return folder


def build(folder: Path, task: dict[str, Any] | None = None, **options: Any) -> tuple[Any, FusedModel, Batch]:
    job, batch = tiny_generation.load_batch(tiny_generation.speech_job(folder, task, **options))
    torch.manual_seed(0)
    return job, FusedModel(job).eval(), batch


def whole_model(folder: Path, max_seconds: float) -> Any:
    """Return the model as transformers loads it, for clips of `max_seconds`."""
    model = WhisperForConditionalGeneration.from_pretrained(folder / "whisper").eval()
    positions = round(max_seconds * 50)
    encoder = model.get_encoder()
    encoder.embed_positions = torch.nn.Embedding.from_pretrained(encoder.embed_positions.weight[:positions])
    encoder.max_source_positions = encoder.config.max_source_positions = positions
    return model


@pytest.mark.parametrize("max_seconds", [1.0, 0.4])
@pytest.mark.parametrize("beams", [1, 2])
def test_losses_and_tokens_are_those_of_the_whole_model(max_seconds: float, beams: int, folder: Path) -> None:
    """Of each clip alone, with its encoder and its decoder in one model."""
    _, model, batch = build(
        folder, {"decoding": {"num_beams": beams}}, **{"inputs.audio.max_seconds": max_seconds}
    )
    whole = whole_model(folder, max_seconds)
    features = batch.inputs["audio"]
    replies = set()
    with torch.no_grad():
        outputs = model(batch).tasks["answer"]
        generated = model(batch, generate=True).tasks["answer"]
        for row, place in enumerate(features.index[:, 0].tolist()):
            found = generated[row][~generated[row].isnan()].long().tolist()
            if place < 0:
                assert found == [257]
                continue
            inputs = {"input_features": features.features["input_features"][place : place + 1]}
            target = batch.targets["answer"][row]
            reply = target[~target.isnan()].long()
            ids = torch.tensor([[*PROMPT, *reply[:-1].tolist()]])
            logits = whole(**inputs, decoder_input_ids=ids).logits[0, len(PROMPT) - 1 :]
            wanted = torch.nn.functional.cross_entropy(logits, reply, reduction="sum")
            torch.testing.assert_close(outputs[row, 0], wanted, rtol=1e-4, atol=1e-3)
            tokens = GenerationMixin.generate(
                whole,
                **inputs,
                decoder_input_ids=torch.tensor([PROMPT]),
                decoder_start_token_id=PROMPT[0],
                max_new_tokens=12,
                num_beams=beams,
                eos_token_id=257,
                pad_token_id=257,
                do_sample=False,
            )[0, len(PROMPT) :].tolist()
            assert tokens[: len(found)] == found
            assert set(tokens[len(found) :]) <= {257}
            replies.add(tuple(found))
    assert len(replies) > 1


def test_a_reply_begins_with_a_space_as_in_pretraining(folder: Path) -> None:
    _, model, _ = build(folder)
    head: Any = task_heads(model)["answer"]
    ids = head.renderer.reply_ids("low")
    assert head.renderer.tokenizer.decode(ids[:-1]) == " low"
    assert ids[-1] == 257
    assert head.renderer.decode(ids) == "low"


@pytest.mark.parametrize(
    ("task", "multilingual", "wanted"),
    [
        ({}, True, PROMPT),
        ({"language": "de", "task": "translate"}, True, [262, 264, 266, 267]),
        ({}, False, [262, 267]),
    ],
)
def test_the_prompt_states_language_and_task(
    task: dict[str, Any], multilingual: bool, wanted: list[int], folder: Path, tmp_path: Path
) -> None:
    path = tiny_language_models.whisper(tmp_path / "whisper", multilingual)
    _, model, _ = build(folder, {**task, "model": str(path)})
    head: Any = task_heads(model)["answer"]
    assert head.renderer.decoder_prompt == wanted


@pytest.mark.parametrize(
    ("task", "multilingual", "message"),
    [
        ({"language": "xx"}, True, r"no token <\|xx\|>; set language to a code that it has"),
        (
            {"language": "de"},
            False,
            "it transcribes English only; use a multilingual model, or remove language",
        ),
        ({"max_tokens": 62}, True, "a reply takes up to 65 tokens, above the 64 positions .* to 61"),
    ],
)
def test_what_the_model_cannot_do_is_an_error_before_training(
    task: dict[str, Any], multilingual: bool, message: str, folder: Path, tmp_path: Path
) -> None:
    path = tiny_language_models.whisper(tmp_path / "whisper", multilingual)
    job = tiny_generation.speech_job(folder, {**task, "model": str(path)})
    with pytest.raises(DataError, match=rf"tasks\.answer\.model: .*{message}"):
        check_targets(job)


def test_a_decoder_that_does_not_fit_the_encoder_is_an_error(folder: Path, tmp_path: Path) -> None:
    from transformers import WhisperConfig

    wider = tiny_language_models.whisper(tmp_path / "whisper")
    WhisperConfig(d_model=32, decoder_start_token_id=262).save_pretrained(wider)
    job = tiny_generation.speech_job(folder, {"model": str(wider)})
    message = (
        "reads states of width 32, and the encoder of `audio`, .*, returns 16; use the same model in both"
    )
    with pytest.raises(DataError, match=message):
        check_targets(job)
    other = tiny_language_models.t5(tmp_path / "t5")
    with pytest.raises(DataError, match="a t5 model cannot be used with reads; use a Whisper model"):
        check_targets(tiny_generation.speech_job(folder, {"model": str(other)}))


@pytest.mark.parametrize("train", ["lora", "full"])
def test_rows_without_clips_reach_every_parameter(train: str, folder: Path) -> None:
    """Ranks whose rows lack an input would hang the others (DeepSpeed#7170)."""
    job, model, batch = build(folder, {"train": train}, train=train)
    model.train()
    filler = collate([], Preprocessor(job.inputs, job.tasks).modalities, add_dummies=True)
    subsets = [batch.select_inputs(names) for names in (["audio"], ["image"], [])]
    for chosen in (batch, *subsets, filler):
        model.zero_grad()
        model.total_loss(model.losses(model(chosen), chosen), chosen).backward()
        assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_evaluation_without_the_clip(folder: Path) -> None:
    job, model, batch = build(folder)
    heads = task_heads(model)
    subsets = [("audio", "image"), ("image",)]
    both, without = collect_outputs(model, heads, [batch], subsets, subsets)
    assert {row.text for row in without.replies["answer"].rows} == {""}
    metrics = compute_metrics(heads, job, without)
    assert metrics["answer/wer"] == 1
    assert metrics["answer/perplexity"] > 1
    assert len({row.text for row in both.replies["answer"].rows}) > 1


def test_the_clip_has_a_contribution_to_its_transcript(folder: Path) -> None:
    job, model, batch = build(folder)
    modalities: dict[str, Modality] = Preprocessor(job.inputs).modalities
    found = explain(model, batch, modalities)
    assert found.contributions["answer"].shap_values.shape == (len(batch.weights), 2)


@pytest.mark.parametrize(
    ("transcript", "is_last", "segments", "next_start"),
    [
        # Time stamps are numbers of 0.02 s, texts letters, as in a window of 30 s.
        ([0, "a", 100, 100, "b", 200], False, [(0, 2, "a"), (2, 4, "b")], 30),
        ([0, "a", 100, 100, "b"], False, [(0, 2, "a")], 2),
        ([0, "a", 100, 100], False, [(0, 2, "a")], 2),
        ([0, "a", 100, 100, "b"], True, [(0, 2, "a"), (2, 30, "b")], 30),
        ([50, "a"], False, [(1, 30, "a")], 30),
        ([0], False, [], 30),
        ([], False, [], 30),
    ],
)
def test_segments_that_a_window_cuts_off_are_left_to_the_next_one(
    transcript: list[Any], is_last: bool, segments: list[Any], next_start: float, folder: Path
) -> None:
    _, model, _ = build(folder)
    head: Any = task_heads(model)["answer"]
    first = head.renderer.first_time_stamp
    letters = head.renderer.tokenizer.convert_tokens_to_ids
    ids = [letters(one) if isinstance(one, str) else first + one for one in transcript]
    found, following = head.reading.time_stamps.split([*ids, head.renderer.end_id], 30.0, is_last)
    assert [tuple(one) for one in found] == segments
    assert following == next_start
