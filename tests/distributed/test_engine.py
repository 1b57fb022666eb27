"""Two workers with every optimizer, offloaded state and sharded pretrained encoders learn the same as stage 0.

Each resumes from the checkpoint of stage 0 after one epoch, or starts a new run. All runs of a test share two processes,
because starting them takes longest.
"""

import json
from pathlib import Path
from typing import Any

import ranks
import tiny_encoders
import tiny_jobs
import torch

HOST = {"optimizer": "cpu"}
ALL_HOST = {"optimizer": "cpu", "parameters": "cpu"}
ADAMW = {"type": "adamw", "eps": 1e-6}
SGD = {"type": "sgd", "nesterov": True, "lr": 0.05}
LION = {"type": "lion", "lr": 1e-4}
MUON, ADAFACTOR = {"type": "muon"}, {"type": "adafactor"}


def run_on_two_workers(folder: Path, jobs: dict[str, Any]) -> None:
    """Train each job: one epoch to FOLDER/NAME and another to FOLDER/NAME-on, or only the second for `X from NAME`."""
    plain = {name: job.model_dump_json() for name, job in jobs.items()}
    ranks.spawn(_rank, 2, plain, folder)


def _rank(rank: int, world: int, jobs: dict[str, str], folder: Path) -> None:
    for name, job_json in jobs.items():
        if name.startswith("create"):
            _create(rank, folder / name, json.loads(job_json))
            continue
        _train(rank, folder / name, json.loads(job_json))
        torch.distributed.barrier()


def _create(rank: int, folder: Path, content: Any) -> None:
    """Write the weights of a new model, and whether a worker loaded all weights of its encoder."""
    import deepspeed
    from safetensors.torch import save_file

    from rayfuse.data.dataset import load_dataset
    from rayfuse.spec.job import Job
    from rayfuse.spec.load import validate_spec
    from rayfuse.training.deepspeed_config import load_deepspeed_config
    from rayfuse.training.engine import create_model

    job, _ = load_dataset(validate_spec(content, Job, "job"))
    torch.manual_seed(0)
    model = create_model(job, load_deepspeed_config(job), world_size=2, precision="fp32")
    parts = [
        part
        for name, part in model.named_parameters()
        if name.startswith("encoders") and "base_layer" in name
    ]
    divided = [hasattr(part, "ds_id") and not part.numel() for part in parts]
    with deepspeed.zero.GatheredParameters([part for part in model.parameters() if hasattr(part, "ds_id")]):
        tensors = {
            name: part.detach().clone().contiguous()
            for name, part in model.named_parameters()
            if part.numel()
        }
    if rank == 0:
        folder.mkdir(parents=True)
        save_file({**tensors, "whole": torch.tensor(not any(divided))}, folder / "model.safetensors")


def _train(rank: int, folder: Path, content: Any) -> None:
    from rayfuse.data.dataset import load_dataset
    from rayfuse.spec.job import Job
    from rayfuse.spec.load import validate_spec
    from rayfuse.training.build_trainer import build_trainer
    from rayfuse.training.data_dependent_init import initialize_from_data
    from rayfuse.training.deepspeed_config import load_deepspeed_config
    from rayfuse.training.distributed import DistributedContext
    from rayfuse.training.train_step import seed_everything

    job, dataset = load_dataset(validate_spec(content, Job, "job"))
    context = DistributedContext(rank, world_size=2)
    trainer = build_trainer(job, dataset.splits, load_deepspeed_config(job), context)
    _, _, start = folder.name.partition(" from ")
    if start:
        trainer.state = trainer.checkpoints.restore(folder.with_name(start))
    else:
        seed_everything(job.train.seed, 0)
        initialize_from_data(trainer.engine, trainer.evaluator, trainer.precision)
        trainer.train_epoch(0)
        _write(trainer, folder)
    seed_everything(job.train.seed, 1)  # dropout is the same in both
    trainer.train_epoch(1)
    _write(trainer, folder.with_name(f"{folder.name}-on"))


def _write(trainer: Any, folder: Path) -> None:
    from rayfuse.training.optimizer_state import gather_optimizer_state
    from rayfuse.training.state import copy_to_cpu, gather_model, write_checkpoint

    model, state = (
        copy_to_cpu(gather_model(trainer.engine)),
        copy_to_cpu(gather_optimizer_state(trainer.engine)),
    )
    if trainer.context.is_main:
        folder.mkdir(parents=True)
        write_checkpoint(folder, trainer.job, model, state, trainer.state)


def make_job(folder: Path, optimizer: dict[str, Any], stage: int = 0, **overrides: Any) -> Any:
    """Batches of 6 rows; some have no image."""
    if not (folder / "train.jsonl").exists():
        tiny_jobs.make_rows(folder, 32, "train", audio=True)
        tiny_jobs.make_rows(folder, 3, "test", audio=True)
        tiny_jobs.roughen(folder)
        tiny_encoders.bert(folder / "bert")
    bert = {"type": "huggingface", "model": str(folder / "bert"), "train": "lora"}
    settings = {
        "train.batch_size": 6,
        "train.deepspeed.stage": stage,
        "inputs.image.encoder.dropout": 0.0,
        "inputs.text.encoder": bert,
        "train.optimizer": {"lr": 0.003, **optimizer},
        **overrides,
    }
    return tiny_jobs.tiny_job(folder, **settings)


def off(folder: Path, first: str, second: str) -> float:
    """Return how far apart two runs end, relative to how far the weights moved in the second epoch."""
    kind = second.removesuffix("-on").rpartition(" from ")[2]
    found, wanted, before = read(folder / first), read(folder / second), read(folder / kind)
    for part in ("model", "optimizer"):
        assert found[part].keys() == wanted[part].keys()
    state = {name: torch.zeros_like(tensor) for name, tensor in wanted["optimizer"].items()}
    return max(
        gap(found["model"], wanted["model"]) / gap(before["model"], read(folder / f"{kind}-on")["model"]),
        gap(found["optimizer"], wanted["optimizer"]) / gap(state, wanted["optimizer"]),
    )


def gap(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    return sum(float((tensor - second[name]).square().sum()) for name, tensor in first.items()) ** 0.5


def read(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    from safetensors.torch import load_file

    return {name: load_file(folder / f"{name}.safetensors") for name in ("model", "optimizer")}


def test_every_optimizer(tmp_path: Path) -> None:
    data = tmp_path / "data"
    jobs = {
        "sgd": make_job(data, SGD),
        "stage 1 from sgd": make_job(data, SGD, 1),
        "stage 3 from sgd": make_job(data, SGD, 3),
        "lion": make_job(data, LION),
        "stage 2 from lion": make_job(data, LION, 2),
        "stage 3 from lion": make_job(data, LION, 3),
        "muon": make_job(data, MUON),
        "stage 0 from muon": make_job(data, MUON),
        "adafactor": make_job(data, ADAFACTOR),
        "stage 0 from adafactor": make_job(data, ADAFACTOR),
    }
    run_on_two_workers(tmp_path, jobs)
    starts = {name: name.partition(" from ")[2] for name in jobs if " from " in name}
    found = {name: off(tmp_path, f"{name}-on", f"{start}-on") for name, start in starts.items()}
    assert max(found.values()) < 1e-4, found


def test_bf16_with_frozen_weights_that_are_rounded_and_under_stage_3_are_not(tmp_path: Path) -> None:
    data, half = tmp_path / "data", {"train.precision": "bf16"}
    jobs = {
        "sgd": make_job(data, SGD, **half),
        **{f"stage {stage} from sgd": make_job(data, SGD, stage, **half) for stage in (1, 2, 3)},
    }
    run_on_two_workers(tmp_path, jobs)
    found = {name: off(tmp_path, f"{name}-on", "sgd-on") for name in list(jobs)[1:]}
    assert max(found.values()) < 0.2, found  # rounding: between 0.005 and 0.06, with the order of the rows


def test_offload_and_sharded_encoders(tmp_path: Path) -> None:
    data, forget = tmp_path / "data", {"train.activation_checkpointing": True}
    jobs = {
        "adamw": make_job(data, ADAMW),
        "optimizer of stage 1 from adamw": make_job(data, ADAMW, 1, **{"train.deepspeed.offload": HOST}),
        "optimizer of stage 2 from adamw": make_job(data, ADAMW, 2, **{"train.deepspeed.offload": HOST}),
        "both of stage 3 from adamw": make_job(data, ADAMW, 3, **{"train.deepspeed.offload": ALL_HOST}),
        "forgetful stage 2 from adamw": make_job(data, ADAMW, 2, **forget),
        "forgetful stage 3": make_job(data, ADAMW, 3, **forget),
    }
    run_on_two_workers(tmp_path, jobs)
    found = {name: off(tmp_path, f"{name}-on", "adamw-on") for name in list(jobs)[1:]}
    found["fresh"] = off(tmp_path, "forgetful stage 3", "adamw")
    assert max(found.values()) < 1e-4, found


def test_adapters_initialized_from_training_rows(tmp_path: Path) -> None:
    """Under every stage they have the same initial weights and learn the same."""
    data = tmp_path / "data"

    def job(init: str, stage: int) -> Any:
        return make_job(data, SGD, stage, **{"inputs.text.encoder.lora": {"r": 2, "init_lora_weights": init}})

    stages = {"eva": (2, 3), "corda": (2,), "lora_ga": (2,), "loftq": (2,)}
    jobs = {
        name: job(init, stage)
        for init, others in stages.items()
        for name, stage in [
            (init, 0),
            *((f"{init} fresh {s}", s) for s in others),
            (f"stage 1 from {init}", 1),
        ]
    }
    run_on_two_workers(tmp_path, jobs)
    for init in ("corda", "lora_ga"):
        moved = [part for name, part in read(tmp_path / init)["model"].items() if name.endswith("initial_b")]
        assert moved
        assert all(part.any() for part in moved), f"{init} was initialized without rows"
    directions = [part for name, part in read(tmp_path / "eva")["model"].items() if ".lora_A." in name]
    for part in directions:  # of length 1, and little changed since; the default's are half as long
        torch.testing.assert_close(part.norm(dim=1), torch.ones(2), rtol=0, atol=0.1)
    found = {name: off(tmp_path, f"{name}-on", f"{name.split()[-1]}-on") for name in jobs if " from " in name}
    found |= {name: off(tmp_path, name, name.split()[0]) for name in jobs if " fresh " in name}
    assert max(found.values()) < 1e-3, found


def test_pretrained_encoders_are_sharded_while_loading(tmp_path: Path) -> None:
    """PiSSA decomposes full weights. Whisper is loaded in full, because transformers cannot shard it while loading."""
    from safetensors.torch import load_file

    data = tmp_path / "data"
    jobs = {}
    for stage in (0, 3):
        jobs[f"create text {stage}"] = make_job(
            data, ADAMW, stage, **{"inputs.text.encoder.lora": {"init_lora_weights": "pissa"}}
        )
        speech = {
            "type": "huggingface",
            "model": str(tiny_encoders.whisper(data / "whisper")),
            "train": "lora",
        }
        audio = {
            "type": "audio",
            "sample_rate": 16000,
            "max_seconds": 0.1,
            "optional": True,
            "encoder": speech,
        }
        jobs[f"create audio {stage}"] = make_job(data, ADAMW, stage, **{"inputs.audio": audio})
    run_on_two_workers(tmp_path, jobs)
    for kind in ("text", "audio"):
        first, second = (load_file(tmp_path / f"create {kind} {stage}/model.safetensors") for stage in (0, 3))
        assert (second.pop("whole") == 1) == (kind == "audio")
        assert first.pop("whole") == 1
        torch.testing.assert_close(second, first, rtol=0, atol=1e-6)
