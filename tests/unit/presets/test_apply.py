"""Values that presets choose for a job, and those that they leave to its spec."""

from pathlib import Path
from typing import Any

import pytest

from rayfuse.presets import Facts, InputFacts, apply_preset, choose_preset
from rayfuse.spec.job import Job
from rayfuse.spec.quality import QUALITIES


def make_job(inputs: dict[str, Any], **sections: Any) -> Job:
    tasks = sections.pop("tasks", {"label": {"type": "classification"}})
    return Job(name="plain", data={"train": "rows.jsonl"}, inputs=inputs, tasks=tasks, **sections)


DIGITS = {"image": {"type": "image", "optional": True}, "audio": {"type": "audio", "optional": True}}
DIGIT_FACTS = Facts(945, {"image": InputFacts(28), "audio": InputFacts(0.62, sample_rate=8000)})
EVERY_TYPE = {
    "image": {"type": "image"},
    "audio": {"type": "audio"},
    "text": {"type": "text"},
    "series": {"type": "timeseries", "channels": 2},
    "table": {"type": "tabular", "columns": ["age"]},
    "items": {"type": "item_sequence"},
    "video": {"type": "video"},
}


def test_small_images_and_short_clips_get_small_networks_and_augmentation() -> None:
    job = apply_preset(make_job(DIGITS), "medium", DIGIT_FACTS)
    assert job.inputs["image"].model_dump(include={"size", "encoder"}) == {
        "size": 28,
        "encoder": {"type": "conv", "lr": None, "hidden_size": 16, "dropout": 0.3},
    }
    assert [step.type for step in job.inputs["image"].augment] == ["affine", "elastic"]
    audio = job.inputs["audio"].model_dump(include={"sample_rate", "max_seconds"})
    assert audio == {"sample_rate": 8000, "max_seconds": 0.7}
    assert [step.type for step in job.inputs["audio"].augment] == ["shift", "spec_augment", "gaussian_noise"]


def test_a_clip_that_is_a_little_longer_than_others_is_cut() -> None:
    facts = Facts(300, {"audio": InputFacts(5.02, sample_rate=44100)})
    audio = apply_preset(make_job({"audio": {"type": "audio"}}), "medium", facts).inputs["audio"]
    assert audio.model_dump(include={"sample_rate", "max_seconds"}) == {
        "sample_rate": 16000,
        "max_seconds": 5,
    }


def test_optional_inputs_get_a_loss_on_subsets_and_gates() -> None:
    job = apply_preset(make_job(DIGITS), "medium", DIGIT_FACTS)
    assert job.fusion.type == "gated"
    assert job.train.subset_loss is not None
    assert job.train.subset_loss.sampling == "single"
    assert apply_preset(make_job(DIGITS), "fast", DIGIT_FACTS).train.modality_dropout == 0.2


def test_required_inputs_get_neither_subsets_nor_noise() -> None:
    required = {name: {"type": name} for name in DIGITS}
    job = apply_preset(make_job(required), "medium", DIGIT_FACTS)
    assert job.train.subset_loss is None
    assert job.train.modality_dropout == 0
    assert "gaussian_noise" not in [step.type for step in job.inputs["audio"].augment]


@pytest.mark.parametrize("quality", QUALITIES)
@pytest.mark.parametrize("rows", [1, 40, 3000, 200_000])
@pytest.mark.parametrize("name", [*EVERY_TYPE, None])
def test_every_type_of_input_at_every_size_gives_a_valid_job(
    quality: Any, rows: int, name: str | None
) -> None:
    inputs = EVERY_TYPE if name is None else {name: EVERY_TYPE[name]}
    pretrained = {"text": "/models/bert", "audio": "/models/whisper", "image": "/models/vit"}
    for optional in (False, True):
        given = {key: {**options, "optional": optional} for key, options in inputs.items()}
        for models in ({}, pretrained):
            apply_preset(make_job(given), quality, Facts(rows, pretrained=models))


def test_what_the_spec_sets_stays() -> None:
    inputs = {
        "image": {"type": "image", "size": 64, "encoder": {"type": "conv", "dropout": 0.5}, "augment": []},
        "audio": {"type": "audio", "optional": True, "encoder": {"type": "gru"}},
    }
    train = {"epochs": 3, "optimizer": {"type": "sgd"}, "subset_loss": None, "ema": {"decay": 0.5}}
    given = make_job(inputs, fusion={"type": "sum", "hidden": 8}, align={"dim": 32}, train=train)
    job = apply_preset(given, "medium", DIGIT_FACTS)
    assert job.inputs["image"].model_dump(include={"size", "augment"}) == {"size": 64, "augment": []}
    assert job.inputs["image"].encoder.model_dump(include={"type", "dropout"}) == {
        "type": "conv",
        "dropout": 0.5,
    }
    assert job.inputs["audio"].encoder == given.inputs["audio"].encoder
    assert (job.fusion, job.align) == (given.fusion, given.align)
    assert (job.train.epochs, job.train.optimizer, job.train.subset_loss, job.train.ema) == (
        3,
        given.train.optimizer,
        None,
        given.train.ema,
    )
    assert job.train.schedule.warmup == 0.1


def test_a_block_of_the_same_type_is_completed() -> None:
    inputs = {"image": {"type": "image", "encoder": {"type": "conv", "hidden_size": 8}}}
    encoder = apply_preset(make_job(inputs), "medium", DIGIT_FACTS).inputs["image"].encoder
    assert encoder.model_dump() == {"type": "conv", "lr": None, "hidden_size": 8, "dropout": 0.3}


def test_few_rows_are_repeated_more_often_and_quality_costs_time() -> None:
    job = make_job({"image": {"type": "image"}})
    epochs = [apply_preset(job, "medium", Facts(rows)).train.epochs for rows in (100, 5000, 200_000)]
    assert epochs == [60, 30, 10]
    budgets = [apply_preset(job, quality, Facts(100)).train.time_budget for quality in QUALITIES]  # type: ignore[arg-type]
    assert budgets == [120, 1200, 7200]


def test_pretrained_models_stay_frozen_where_training_them_is_slow() -> None:
    inputs, models = {"text": {"type": "text"}}, {"text": "/models/bert"}
    long = Facts(10_000, {"text": InputFacts(600, distinct=500)}, models)
    frozen = apply_preset(make_job(inputs), "medium", long)
    assert frozen.inputs["text"].encoder.frozen
    assert frozen.align_of("text").standardize
    short = Facts(1000, {"text": InputFacts(60, distinct=500)}, models)
    adapted = apply_preset(make_job(inputs), "medium", short)
    assert adapted.inputs["text"].encoder.model_dump()["train"] == "lora"
    assert adapted.train.epochs == 15


def test_n_grams_of_few_texts_are_read_beside_a_frozen_encoder() -> None:
    inputs, models = {"text": {"type": "text"}}, {"text": "/models/bert"}

    def encoder(rows: int, length: float) -> dict[str, Any]:
        facts = Facts(rows, {"text": InputFacts(length, distinct=500)}, models)
        found: dict[str, Any] = (
            apply_preset(make_job(inputs), "medium", facts).inputs["text"].encoder.model_dump()
        )
        return found

    both = encoder(800, 600)
    assert (both["type"], both["characters"]) == ("ngrams", (3, 5))
    assert (both["pretrained"]["model"], both["pretrained"]["train"]) == ("/models/bert", "frozen")
    assert encoder(4900, 1500)["pretrained"] is None  # would take minutes
    assert encoder(800, 60)["train"] == "lora"


def test_few_validation_rows_select_no_epoch() -> None:
    inputs = {"table": {"type": "tabular", "columns": ["age"]}}

    def train(rows: int, **sections: Any) -> Any:
        return apply_preset(make_job(inputs, **sections), "best", Facts(rows)).train

    few, many = train(1700), train(1900)
    assert (few.load_best_model_at_end, few.early_stopping, few.model_soup) == (False, None, None)
    assert (many.load_best_model_at_end, many.model_soup) == (True, 5)
    assert many.early_stopping.metric == "loss"
    given = {"early_stopping": {"metric": "label/accuracy"}}
    assert train(1700, train=given).load_best_model_at_end
    assert train(1700, train={"load_best_model_at_end": True}).model_soup == 5
    assert train(1900, train={"load_best_model_at_end": False}).model_soup is None


def test_validation_rows_in_a_file_select_the_epoch() -> None:
    job = make_job({"table": {"type": "tabular", "columns": ["age"]}}).override(
        **{"data.validation": "val.jsonl"}
    )
    assert apply_preset(job, "medium", Facts(100)).train.load_best_model_at_end


def test_texts_without_a_pretrained_model_are_read_as_n_grams_for_a_few_epochs() -> None:
    inputs = {"text": {"type": "text"}, "table": {"type": "tabular", "columns": ["age"]}}
    job = apply_preset(make_job(inputs), "medium", Facts(800, {"text": InputFacts(600, distinct=500)}))
    assert job.inputs["text"].encoder.type == "ngrams"
    assert job.inputs["text"].encoder.model_dump()["pretrained"] is None
    assert (job.train.epochs, job.train.batch_size) == (8, 32)
    table_only = apply_preset(make_job({"table": inputs["table"]}), "medium", Facts(800))
    assert (table_only.train.epochs, table_only.train.batch_size) == (60, 32)


def test_texts_and_tables_are_concatenated() -> None:
    inputs = {
        "text": {"type": "text", "optional": True},
        "table": {"type": "tabular", "columns": ["age"]},
    }
    job = apply_preset(make_job(inputs), "medium", Facts(800))
    assert job.fusion.model_dump() == {"type": "concat", "hidden": 128, "layers": 1, "dropout": 0.5}
    assert job.train.subset_loss is not None


def test_long_texts_are_read_as_n_grams() -> None:
    facts = Facts(800, {"text": InputFacts(2000, distinct=500)}, {"text": "/models/bert"})
    job = apply_preset(make_job({"text": {"type": "text"}}), "medium", facts)
    assert job.inputs["text"].encoder.type == "ngrams"


def test_a_few_phrases_need_no_pretrained_model() -> None:
    facts = Facts(4000, {"text": InputFacts(40, distinct=12)}, {"text": "/models/bert"})
    job = apply_preset(make_job({"text": {"type": "text"}}), "medium", facts)
    assert job.inputs["text"].encoder.type == "ngrams"


def test_a_model_that_the_spec_names_is_used_like_one_on_this_machine() -> None:
    encoder = {"type": "huggingface", "model": "/models/own"}
    facts = Facts(20_000, {"text": InputFacts(600, distinct=500)}, {"text": "/models/bert"})
    job = apply_preset(make_job({"text": {"type": "text", "encoder": encoder}}), "medium", facts)
    assert job.inputs["text"].encoder.model_dump(include={"model", "train"}) == {
        "model": "/models/own",
        "train": "frozen",
    }
    assert job.inputs["text"].max_tokens == 160


def test_encoders_of_bytes_read_as_many_bytes_as_texts_have() -> None:
    inputs = {"text": {"type": "text", "encoder": {"type": "gru", "pool": "none"}}}
    job = apply_preset(make_job(inputs), "medium", Facts(800, {"text": InputFacts(90, distinct=500)}))
    assert job.inputs["text"].max_tokens == 96


def test_a_preset_is_valid_beside_other_options() -> None:
    job = make_job(DIGITS, align={"dim": 30}, compute={"workers": 16}, train={"deepspeed": {"stage": 3}})
    filled = apply_preset(job, "medium", Facts(100))
    assert filled.train.batch_size == 16
    assert filled.train.ema is None


def test_applying_a_preset_again_changes_nothing() -> None:
    job = apply_preset(make_job(DIGITS), "medium", DIGIT_FACTS)
    assert apply_preset(job, "best", DIGIT_FACTS).train.epochs == job.train.epochs
    assert apply_preset(job, "medium", DIGIT_FACTS) == job


def test_it_says_what_it_sets() -> None:
    job = make_job({"series": {"type": "timeseries", "channels": 2, "augment": []}}, fusion={"type": "sum"})
    text = str(choose_preset(job, "fast", Facts(32, {"series": InputFacts(100)})))
    assert text.startswith(
        "quality fast, for 32 training rows, sets\n"
        "  inputs.series: {encoder: {type: conv, hidden_size: 64, layers: 4, dropout: 0.1}}\n"
        "  align: {type: linear, dim: 64}\n"
        "  train: {epochs: 25, batch_size: 8, "
    )


def test_relative_paths_stay_resolved(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        "kind: job\nname: plain\ndata: {train: rows.jsonl}\ninputs: {image: {type: image}}\n"
        "tasks: {label: {type: classification}}\n"
    )
    job = apply_preset(Job.from_yaml(tmp_path / "job.yaml"), "fast", Facts(10))
    assert job.data.train == str(tmp_path / "rows.jsonl")
