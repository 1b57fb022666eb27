"""DeepSpeed's configuration and the optimizer's parameter groups, without DeepSpeed."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
import tiny_encoders
import tiny_jobs

from rayfuse.data.dataset import fit
from rayfuse.data.ingest import read_job_rows
from rayfuse.errors import SpecError
from rayfuse.model.fused import FusedModel, trainable_parameters
from rayfuse.training.deepspeed_config import build_deepspeed_config, load_deepspeed_config
from rayfuse.training.engine import set_learning_rates
from rayfuse.training.param_groups import build_param_groups


def job_with(folder: Path, **overrides: Any) -> Any:
    return tiny_jobs.tiny_job(folder, **overrides)


def job_of_file(folder: Path, content: Any) -> Any:
    file = folder / "zero.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return job_with(folder, **{"train.deepspeed": str(file)})


def test_deepspeed_options_with_a_stage_only(tmp_path: Path) -> None:
    job = job_with(tmp_path, **{"train.deepspeed": {"stage": 3}})
    assert load_deepspeed_config(job) == {"zero_optimization": {"stage": 3}}


def test_a_deepspeed_file_is_merged_with_the_job(tmp_path: Path) -> None:
    content = {
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 5000, "overlap_comm": "auto"},
        "train_batch_size": "auto",
        "wall_clock_breakdown": True,
    }
    options = load_deepspeed_config(job_of_file(tmp_path, content))
    assert options == {
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 5000},
        "wall_clock_breakdown": True,
    }
    config = build_deepspeed_config(job_of_file(tmp_path, content), options, 2, "fp32", 1000)
    assert config["zero_optimization"]["reduce_bucket_size"] == 5000
    assert config["zero_optimization"]["allgather_bucket_size"] == 2**20
    assert config["wall_clock_breakdown"] is True


def test_a_file_at_any_url(tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe_file("/engine/zero.json", b'{"zero_optimization": {"stage": 1}}')
    job = job_with(tmp_path, **{"train.deepspeed": "memory://engine/zero.json"})
    assert load_deepspeed_config(job) == {"zero_optimization": {"stage": 1}}


@pytest.mark.parametrize("init", ["corda", "lora_ga", "loftq"])
def test_stage_3_is_rejected_if_frozen_weights_change(init: str, tmp_path: Path) -> None:
    problem = rf"inputs\.text\.encoder\.lora\.init_lora_weights: .*{init} changes frozen weights, .*, or eva"
    lora = {"type": "huggingface", "model": "/nowhere", "train": "lora", "lora": {"init_lora_weights": init}}
    with pytest.raises(SpecError, match=problem):
        job_with(tmp_path, **{"inputs.text.encoder": lora, "train.deepspeed": {"stage": 3}})
    zero = tmp_path / "zero.json"
    zero.write_text('{"zero_optimization": {"stage": 3}}')
    job = job_with(tmp_path, **{"inputs.text.encoder": lora, "train.deepspeed": str(zero)})
    with pytest.raises(SpecError, match=problem):
        load_deepspeed_config(job)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            {"optimizer": {"type": "Adam"}},
            "zero.json: `optimizer` is set by train.optimizer of the job; remove it",
        ),
        ({"fp16": {"enabled": True}}, "`fp16` is set by train.precision of the job"),
        (
            {"train_micro_batch_size_per_gpu": 4},
            "is set by train.batch_size and train.gradient_accumulation_steps of the job",
        ),
        ({"gradient_clipping": 1.0}, "is set by train.max_grad_norm"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage: 4 is not 0, 1, 2 or 3"),
        ({"zero_optimization": True}, "zero_optimization must be a JSON object"),
        ([], "must be a JSON object"),
        ("{", "is not valid JSON: "),
        (b"\xff".decode("latin-1"), "is not valid JSON: "),
    ],
)
def test_files_that_are_rejected(content: Any, problem: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=f"train.deepspeed: .*{problem}"):
        load_deepspeed_config(job_of_file(tmp_path, content))


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="train.deepspeed: .*absent.json: file not found"):
        load_deepspeed_config(job_with(tmp_path, **{"train.deepspeed": str(tmp_path / "absent.json")}))
    with pytest.raises(SpecError, match="train.deepspeed: .*: cannot be read: IsADirectoryError"):
        load_deepspeed_config(job_with(tmp_path, **{"train.deepspeed": str(tmp_path)}))
    with pytest.raises(SpecError, match="cannot be read: ValueError: Protocol not known"):
        load_deepspeed_config(job_with(tmp_path, **{"train.deepspeed": "gopher://host/zero.json"}))


@pytest.mark.parametrize(
    ("world", "gradient_accumulation_steps", "micro"),
    [(1, 1, 16), (2, 1, 8), (3, 1, 6), (2, 3, 3), (16, 1, 1), (1, 16, 1)],
)
def test_the_micro_batch_holds_the_largest_part_of_a_global_batch(
    world: int, gradient_accumulation_steps: int, micro: int, tmp_path: Path
) -> None:
    job = job_with(tmp_path, **{"train.gradient_accumulation_steps": gradient_accumulation_steps})
    config = build_deepspeed_config(job, load_deepspeed_config(job), world, "fp32", 10)
    assert config["train_micro_batch_size_per_gpu"] == micro
    assert config["gradient_accumulation_steps"] == gradient_accumulation_steps
    assert "train_batch_size" not in config


@pytest.mark.parametrize(
    ("precision", "autocast"), [("fp32", None), ("bf16", "bfloat16"), ("fp16", "float16")]
)
def test_precision_and_clipping(precision: str, autocast: str | None, tmp_path: Path) -> None:
    job = job_with(tmp_path, **{"train.max_grad_norm": None})
    config = build_deepspeed_config(job, load_deepspeed_config(job), 1, precision, 10)
    assert config["gradient_clipping"] == 0.0
    assert config.get("torch_autocast") == (autocast and {"enabled": True, "dtype": autocast})
    assert json.loads(json.dumps(config)) == config


@pytest.mark.parametrize(("trainable", "bucket"), [(10, 2**20), (2**20, 2**21), (30_000_000, 2**25)])
def test_buffers_hold_what_is_trained(trainable: int, bucket: int, tmp_path: Path) -> None:
    job = job_with(tmp_path)
    zero = build_deepspeed_config(job, load_deepspeed_config(job), 2, "fp32", trainable)["zero_optimization"]
    assert zero == {"stage": 2, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket}


def test_one_worker_uses_stage_zero(tmp_path: Path) -> None:
    def stage(world: int, **deepspeed: Any) -> int:
        job = job_with(tmp_path, **{"train.deepspeed": deepspeed})
        return build_deepspeed_config(job, load_deepspeed_config(job), world, "fp32", 1)["zero_optimization"][
            "stage"
        ]

    assert [stage(1, stage=number) for number in range(4)] == [0, 0, 0, 3]
    assert [stage(2, stage=number) for number in range(4)] == [0, 1, 2, 3]
    assert stage(1, stage=2, offload={"optimizer": "cpu"}) == 2


def test_offload_options(tmp_path: Path) -> None:
    offload = {"optimizer": "cpu", "parameters": "cpu"}
    job = job_with(tmp_path, **{"train.deepspeed": {"stage": 3, "offload": offload}})
    assert load_deepspeed_config(job)["zero_optimization"] == {
        "stage": 3,
        "offload_optimizer": {"device": "cpu"},
        "offload_param": {"device": "cpu"},
    }


@pytest.mark.parametrize(
    ("train", "stage", "problem"),
    [
        ({"ema": {}}, 3, "train.ema: .*which ZeRO stage 3 shards"),
        ({"optimizer": {"type": "muon"}}, 1, "train.optimizer.type: .*muon orthogonalizes whole matrices"),
    ],
)
def test_a_stage_in_a_file_must_fit_the_job(
    train: dict[str, Any], stage: int, problem: str, tmp_path: Path
) -> None:
    file = tmp_path / "zero.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    job = job_with(tmp_path, train={**train, "deepspeed": str(file)})
    with pytest.raises(SpecError, match=problem):
        load_deepspeed_config(job)


def groups_of(folder: Path, *groups: dict[str, Any], **overrides: Any) -> dict[str, tuple[float, float]]:
    """Return rate and decay of each parameter of the tiny job; its defaults are 0.01 and 0.01."""
    job = job_with(folder, **{"train.param_groups": list(groups), **overrides})
    job = fit(job, read_job_rows(job.data.train, job)[0])
    model = FusedModel(job)
    found = {
        member: (group["lr"], group["weight_decay"])
        for group in build_param_groups(job, model)
        for member in group["params"]
    }
    return {name: found[parameter] for name, parameter in trainable_parameters(model).items()}


def test_rates_of_chosen_parameters(tmp_path: Path) -> None:
    found = groups_of(
        tmp_path,
        {"pattern": "encoders.image.*.bias", "lr": 0.5},
        {"pattern": "encoders.image.*", "lr": 0.2, "weight_decay": 0.3},
        {"pattern": "tasks.*", "weight_decay": 0},
        **{"inputs.image.encoder.lr": 0.7},
    )
    assert found["encoders.image.layers.0.weight"] == (0.2, 0.3)
    assert found["encoders.image.layers.1.bias"] == (0.5, 0.0)
    assert found["encoders.image.layers.1.weight"] == (0.2, 0.0)  # of a norm
    assert found["alignment.text.linear.weight"] == (0.01, 0.01)
    assert {rates for name, rates in found.items() if name.startswith("tasks.")} == {(0.01, 0.0)}


@pytest.mark.parametrize(("start", "end"), [("20%", 90), (0, 1)])
def test_spans_of_chosen_parameters(start: Any, end: Any, tmp_path: Path) -> None:
    job = job_with(
        tmp_path, **{"train.param_groups": [{"pattern": "encoders.*", "start": start, "end": end}]}
    )
    job = fit(job, read_job_rows(job.data.train, job)[0])
    model = FusedModel(job)
    names = {parameter: name for name, parameter in trainable_parameters(model).items()}
    for group in build_param_groups(job, model):
        is_chosen = {names[parameter].startswith("encoders.") for parameter in group["params"]}
        assert is_chosen == {group["span"].steps(1000) == range(200 if start else 0, end)}


def test_a_pattern_without_a_parameter(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        groups_of(tmp_path, {"pattern": "*", "lr": 1.0}, {"pattern": "encoder.image.*", "lr": 0.1})
    message, _, near = str(caught.value).partition("similar names: ")
    assert message.startswith(
        "train.param_groups.1.pattern: `encoder.image.*` matches no trainable parameter"
    )
    assert all(name.startswith("encoders.image.") for name in near.split(", "))


def test_groups_by_rate_and_decay(tmp_path: Path) -> None:
    encoder = {
        "type": "huggingface",
        "model": str(tiny_encoders.bert(tmp_path / "bert")),
        "train": "lora",
        "lr": 5e-5,
    }
    job = job_with(tmp_path, **{"inputs.text.encoder": encoder, "train.optimizer.weight_decay": 0.1})
    job = fit(job, read_job_rows(job.data.train, job)[0])
    model = FusedModel(job)
    groups = build_param_groups(job, model)
    found = {
        name: (group["lr"], group["weight_decay"])
        for name, parameter in trainable_parameters(model).items()
        for group in groups
        if any(parameter is member for member in group["params"])
    }
    assert found.keys() == trainable_parameters(model).keys()
    assert sum(len(group["params"]) for group in groups) == len(found)
    assert {name: rate for name, rate in found.items() if name.startswith("encoders.text.")} == {
        name: (5e-5, 0.1) for name in found if name.startswith("encoders.text.")
    }
    assert found["encoders.image.layers.0.weight"] == (0.01, 0.1)
    assert found["encoders.image.layers.1.weight"] == (0.01, 0.0)  # of a norm
    assert found["alignment.text.linear.weight"] == (0.01, 0.1)
    assert found["alignment.text.linear.bias"] == found["alignment.text.placeholder"] == (0.01, 0.0)
    engine = SimpleNamespace(optimizer=SimpleNamespace(param_groups=groups))
    for step in (0, 1):
        set_learning_rates(engine, job.train.schedule.model_copy(update={"warmup": 9}), step, 20)
    assert sorted({group["lr"] for group in groups}) == pytest.approx([5e-5 * 0.2, 0.01 * 0.2])


def rates_of(folder: Path, **encoder: Any) -> dict[str, float]:
    """Return the learning rates of a text encoder's trained parameters; the optimizer's is 0.01."""
    block = {"type": "huggingface", "model": str(tiny_encoders.bert(folder / "bert")), **encoder}
    job = job_with(folder, **{"inputs.text.encoder": block})
    job = fit(job, read_job_rows(job.data.train, job)[0])
    model = FusedModel(job)
    named = {parameter: name for name, parameter in model.named_parameters()}
    return {
        name.removeprefix("encoders.text."): group["lr"]
        for group in build_param_groups(job, model)
        for parameter in group["params"]
        if (name := named[parameter]).startswith("encoders.text.")
    }


@pytest.mark.parametrize("lr", [None, 0.001])
def test_rates_fall_layer_by_layer(lr: float | None, tmp_path: Path) -> None:
    rates = rates_of(tmp_path, train="full", pool="attention", layer_decay=0.5, lr=lr)
    top = lr or 0.01
    assert rates["pool.score.0.weight"] == top
    assert rates["model.encoder.layer.1.attention.self.query.weight"] == top / 2
    assert rates["model.encoder.layer.0.attention.self.query.weight"] == top / 4
    assert rates["model.embeddings.word_embeddings.weight"] == top / 8


def test_rates_of_adapters_fall_as_those_of_their_layers(tmp_path: Path) -> None:
    rates = rates_of(tmp_path, train="lora", lora={"r": 2}, layer_decay=0.5)
    assert set(rates.values()) == {0.005, 0.0025}
    assert all((rate == 0.005) == (".layer.1." in name) for name, rate in rates.items())
