"""Exported encoders give the same outputs in PEFT and transformers."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_encoders
import tiny_generation
import tiny_jobs
import torch
from variants import train_and_reload

import rayfuse
from rayfuse.errors import DataError, SpecError
from rayfuse.model.encoders import build_encoder

IDS = torch.tensor([[2, 4, 5, 3]])
TEXT = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
PIXELS = {"pixel_values": torch.linspace(-1, 1, 768).reshape(1, 3, 16, 16)}
MELS = {"input_features": torch.linspace(-1, 1, 800).reshape(1, 8, 100)}


def trained(folder: Path, kind: str, name: str = "text", **encoder: Any) -> Any:
    """Train an encoder, save its model as FOLDER/model, and return it."""
    torch.manual_seed(0)
    path = getattr(tiny_encoders, kind)(folder / kind)
    block = {"type": "huggingface", "model": str(path), **encoder}
    job = tiny_jobs.tiny_job(folder / "rows", audio=name == "audio", **{f"inputs.{name}.encoder": block})
    if name == "audio":
        audio = job.inputs[name].model_copy(update={"sample_rate": 16000, "max_seconds": 1.0})
        job = job.model_copy(update={"inputs": {**job.inputs, name: audio}})
    model, _ = train_and_reload(folder, job)
    return model.encoders[name]


@torch.no_grad()
def hidden(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    output: torch.Tensor = model.eval()(**inputs).last_hidden_state
    return output


@pytest.mark.parametrize(
    ("kind", "name", "inputs", "options"),
    [
        ("bert", "text", TEXT, {"train": "lora", "lora": {"r": 2}}),
        ("bert", "text", TEXT, {"train": "lora", "lora": {"r": 2, "init_lora_weights": "pissa"}}),
        ("bert", "text", TEXT, {"train": "ia3"}),
        ("bert", "text", TEXT, {"train": "last:1"}),
        ("gpt2", "text", TEXT, {"train": "lora", "pool": "last"}),
        ("vit", "image", PIXELS, {"train": "lora", "lora": {"use_dora": True}}),
        ("clip", "image", PIXELS, {"train": "full"}),
        ("whisper", "audio", MELS, {"train": "lora"}),
    ],
)
def test_merged_folders_give_the_same_outputs(
    tmp_path: Path, kind: str, name: str, inputs: dict[str, torch.Tensor], options: dict[str, Any]
) -> None:
    from transformers import AutoModel

    encoder = trained(tmp_path, kind, name, **options)
    result = rayfuse.export(tmp_path / "model", tmp_path / "out")
    assert result.folders == {name: tmp_path / "out" / name}
    loaded = AutoModel.from_pretrained(tmp_path / "out" / name)
    part = loaded.get_encoder() if kind == "whisper" else getattr(loaded, "vision_model", loaded)
    torch.testing.assert_close(hidden(part, inputs), hidden(encoder.model, inputs), rtol=1e-5, atol=1e-5)
    original = {path.name for path in (tmp_path / kind).iterdir()}
    assert original <= {path.name for path in (tmp_path / "out" / name).iterdir()}


@pytest.mark.parametrize(
    "options",
    [
        {"train": "lora", "lora": {"r": 2, "use_rslora": True}},
        {"train": "lora", "lora": {"r": 2, "last_n_layers": 1, "modules_to_save": ["LayerNorm"]}},
        {"train": "lora", "lora": {"r": 2, "init_lora_weights": "mica"}},
        {"train": "ia3"},
        {"train": "oft", "oft": {"oft_block_size": 8}},
    ],
)
def test_peft_folders_give_the_same_outputs(tmp_path: Path, options: dict[str, Any]) -> None:
    from peft import PeftModel
    from transformers import AutoModel

    encoder = trained(tmp_path, "bert", **options)
    rayfuse.export(tmp_path / "model", tmp_path / "out", "peft")
    files = {path.name for path in (tmp_path / "out" / "text").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= files
    base = AutoModel.from_pretrained(tmp_path / "bert", add_pooling_layer=False)
    before = hidden(base, TEXT)
    loaded = PeftModel.from_pretrained(base, tmp_path / "out" / "text")
    torch.testing.assert_close(hidden(loaded, TEXT), hidden(encoder.model, TEXT), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(hidden(loaded, TEXT), before, atol=1e-4)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    output: torch.Tensor = model.eval()(IDS).logits
    return output


@pytest.mark.parametrize("family", ["smollm", "gpt2"])
def test_language_models_give_the_same_logits_in_peft_and_transformers(family: str, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tiny_generation.make_rows(tmp_path)
    model, _ = train_and_reload(tmp_path, tiny_generation.generation_job(tmp_path, family))
    wanted = logits(model.tasks["answer"].lm.transformer)  # type: ignore[union-attr]
    result = rayfuse.export(tmp_path / "model", tmp_path / "merged")
    assert list(result.folders) == ["tasks/answer"]
    folder = result.folders["tasks/answer"]
    merged = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(merged), wanted, rtol=1e-4, atol=1e-4)
    assert merged.config.use_cache
    assert AutoTokenizer.from_pretrained(folder)("a")["input_ids"]
    assert merged.generation_config.eos_token_id == (259 if family == "smollm" else 257)
    rayfuse.export(tmp_path / "model", tmp_path / "peft", "peft")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / family)
    assert not torch.allclose(logits(base), wanted, atol=1e-4)
    adapted = PeftModel.from_pretrained(base, tmp_path / "peft" / "tasks" / "answer")
    torch.testing.assert_close(logits(adapted), wanted, rtol=1e-4, atol=1e-4)


def test_a_language_model_with_gated_layers_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_generation.make_rows(tmp_path)
    job = tiny_generation.generation_job(tmp_path, "smollm", tiny_generation.CROSS_ATTENTION)
    train_and_reload(tmp_path, job)
    for kind in ("merged", "peft"):
        with pytest.raises(
            SpecError, match=r"tasks/answer: inject: cross_attention adds layers .*rayfuse serve up"
        ):
            rayfuse.export(tmp_path / "model", tmp_path / kind, kind)
    vit = {"type": "huggingface", "model": str(tiny_encoders.vit(tmp_path / "vit")), "train": "lora"}
    job = tiny_generation.generation_job(
        tmp_path,
        "smollm",
        tiny_generation.CROSS_ATTENTION,
        **{"inputs.image.encoder": vit, "inputs.image.size": 16},
    )
    train_and_reload(tmp_path / "two", job)
    result = rayfuse.export(tmp_path / "two" / "model", tmp_path / "out")
    assert list(result.folders) == ["image"]
    assert "tasks/answer: left out; inject: cross_attention" in caplog.text


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_encoder_decoder_models_give_the_same_logits_in_peft_and_transformers(
    family: str, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSeq2SeqLM

    tiny_generation.make_rows(tmp_path)
    model, _ = train_and_reload(tmp_path, tiny_generation.generation_job(tmp_path, family))
    lm = model.tasks["answer"].lm.transformer  # type: ignore[union-attr]
    asked = {"input_ids": IDS, "decoder_input_ids": IDS[:, :3]}
    with torch.no_grad():
        wanted = lm.eval()(**asked).logits
        rayfuse.export(tmp_path / "model", tmp_path / "merged")
        folder = tmp_path / "merged" / "tasks" / "answer"
        merged = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
        torch.testing.assert_close(merged(**asked).logits, wanted, rtol=1e-4, atol=1e-4)
        rayfuse.export(tmp_path / "model", tmp_path / "peft", "peft")
        base = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / family)
        adapted = PeftModel.from_pretrained(base, tmp_path / "peft" / "tasks" / "answer").eval()
        torch.testing.assert_close(adapted(**asked).logits, wanted, rtol=1e-4, atol=1e-4)
    assert merged.generation_config.eos_token_id == 257


def test_a_speech_model_is_exported_in_one_piece(tmp_path: Path) -> None:
    """With the trained weights of the input's encoder and of the task's decoder, and all of its positions."""
    from transformers import WhisperForConditionalGeneration

    tiny_generation.make_speech_rows(tmp_path)
    job = tiny_generation.speech_job(tmp_path, **{"inputs.audio.max_seconds": 1.0})
    model, batch = train_and_reload(tmp_path, job)
    result = rayfuse.export(tmp_path / "model", tmp_path / "merged")
    assert list(result.folders) == ["audio", "tasks/answer"]
    whole = WhisperForConditionalGeneration.from_pretrained(result.folders["tasks/answer"]).eval()
    features, prompt = batch.inputs["audio"].features["input_features"], [262, 263, 265, 267]
    reply = batch.targets["answer"][0]
    ids = torch.tensor([[*prompt, *reply[~reply.isnan()].long().tolist()]])
    place = batch.inputs["audio"].index[0]
    with torch.no_grad():
        logits = whole(features[place], decoder_input_ids=ids[:, :-1]).logits[0, len(prompt) - 1 :]
        wanted = model(batch).tasks["answer"][0, 0]
    loss = torch.nn.functional.cross_entropy(logits, ids[0, len(prompt) :], reduction="sum")
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-3)
    assert whole.config.max_source_positions == 50
    assert (result.folders["tasks/answer"] / "preprocessor_config.json").exists()


def test_a_peft_folder_is_no_model(tmp_path: Path) -> None:
    trained(tmp_path, "bert", train="lora")
    rayfuse.export(tmp_path / "model", tmp_path / "out", "peft")
    encoder = {"type": "huggingface", "model": str(tmp_path / "out" / "text")}
    with pytest.raises(
        DataError, match=r"an adapter of PEFT, not a model; name its model \(.*encoders/text\) here and"
    ):
        tiny_jobs.make_model_folder(
            tmp_path / "again",
            0,
            job=tiny_jobs.tiny_job(tmp_path / "rows", **{"inputs.text.encoder": encoder}),
        )


def test_an_adapter_that_needs_other_frozen_weights_is_rejected(tmp_path: Path) -> None:
    trained(tmp_path, "bert", train="lora", lora={"r": 2, "init_lora_weights": "pissa"})
    with pytest.raises(SpecError, match=r"pissa also changes the frozen weights, .* use --merged"):
        rayfuse.export(tmp_path / "model", tmp_path / "out", "peft")


def test_there_must_be_something_to_export(tmp_path: Path) -> None:
    model = tiny_jobs.make_model_folder(tmp_path, steps=0)
    with pytest.raises(SpecError, match="no pretrained encoder, so there is nothing to export"):
        rayfuse.export(model, tmp_path / "out")


def test_a_job_starts_from_the_adapter_of_another_model(tmp_path: Path) -> None:
    """As trained with PEFT on a model with a head, whose names have a prefix."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(1)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_encoders.bert(tmp_path / "bert"))
    adapted = get_peft_model(
        base,
        LoraConfig(r=2, lora_alpha=8, target_modules=["query"], init_lora_weights=False, task_type="SEQ_CLS"),
    )
    adapted.save_pretrained(tmp_path / "adapter")
    lora = {"r": 2, "lora_alpha": 8, "target_modules": ["query"], "init_from": str(tmp_path / "adapter")}

    def build(**changes: Any) -> Any:
        options = {"type": "huggingface", "model": str(tmp_path / "bert"), "train": "lora"}
        job = tiny_jobs.tiny_job(
            tmp_path / "rows", **{"inputs.text.encoder": {**options, "lora": {**lora, **changes}}}
        )
        return build_encoder(job.inputs["text"])

    expected = hidden(adapted.base_model.model.bert, TEXT)
    torch.testing.assert_close(hidden(build().model, TEXT), expected, atol=1e-5, rtol=0)
    assert not torch.allclose(hidden(build(init_from=None).model, TEXT), expected, atol=1e-3)
    for changes, problem in [
        ({"r": 4}, r"lora.r: 4, but .*adapter has 2; use r: 2"),
        ({"lora_alpha": 16}, r"lora.lora_alpha: 16.*, but .*adapter has 8"),
        (
            {"target_modules": ["key"]},
            r"adapts .*query.*, which has no adapter here; set lora.target_modules",
        ),
        ({"target_modules": ["query", "key"]}, r"has no weights for \d+ adapters, such as .*key"),
    ]:
        with pytest.raises(SpecError, match=problem):
            build(**changes)
    with pytest.raises(DataError, match=r"no adapter_config.json; save the adapter with"):
        build(init_from=str(tmp_path / "bert"))


def test_a_model_that_started_from_an_adapter_does_not_need_it_again(tmp_path: Path) -> None:
    trained(tmp_path / "first", "bert", train="lora", lora={"r": 2})
    rayfuse.export(tmp_path / "first" / "model", tmp_path / "out", "peft")
    trained(
        tmp_path / "second", "bert", train="lora", lora={"r": 2, "init_from": str(tmp_path / "out" / "text")}
    )
    shutil.rmtree(tmp_path / "out")
    assert rayfuse.load_model(tmp_path / "second" / "model").predict({"text": "which colour is this?"})
