"""Frozen encoders run once: the same model comes out, runs share what was made, and nothing stale is taken."""

import json
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
import tiny_encoders
import tiny_jobs
import torch

from rayfuse.data.batches import SampleStore, collate
from rayfuse.data.dataset import Dataset, load_dataset
from rayfuse.data.encoded import TOKENS, Encoded
from rayfuse.data.samples import SampleMaker
from rayfuse.data.shards import ShardFolder
from rayfuse.data.training import training_batch
from rayfuse.errors import MissingInput, ResourceError, SpecError
from rayfuse.modalities.text import TextModality
from rayfuse.model.encoders import identity
from rayfuse.model.encoders.base import FrozenEncoder
from rayfuse.model.encoders.huggingface import HuggingFaceEncoder
from rayfuse.model.evaluation import collect, score, subsets
from rayfuse.model.fused import FusedModel, heads_of, trainable_parameters
from rayfuse.spec.job import Job
from rayfuse.train import feature_cache
from rayfuse.train.feature_cache import encode_frozen

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("encoders")
    return SimpleNamespace(
        bert=str(tiny_encoders.bert(folder / "bert")), vit=str(tiny_encoders.vit(folder / "vit"))
    )


@pytest.fixture
def loaded(tmp_path: Path, encoders: SimpleNamespace) -> tuple[Job, Dataset]:
    text = {"type": "huggingface", "model": encoders.bert}
    return load_dataset(tiny_jobs.tiny_job(tmp_path, **{"inputs.text.encoder": text}))


def encode(job: Job, dataset: Dataset, say: Callable[[str], None] = lambda _: None) -> Encoded:
    return encode_frozen(job, dataset.splits, 0, 1, CPU, "fp32", say)


def changed(job: Job, **parts: dict[str, Any]) -> Job:
    """The job with other keys in its blocks: `inputs_text={"max_tokens": 3}`."""
    content = job.model_dump()
    for path, new in parts.items():
        block = content
        for key in path.split("_"):
            block = block[key]
        block.update(new)
    return Job.model_validate(content)


def shards(job: Job) -> list[str]:
    return sorted(path.parent.name for path in Path(job.output.storage).glob("cache/*/*.safetensors"))


def trained(job: Job, dataset: Dataset, encoded: Encoded) -> list[float]:
    """The losses of six steps over augmented rows with dropped inputs and views, then every validation metric."""
    maker = SampleMaker(job.inputs, job.tasks, encoded.values)
    stores = {
        name: SampleStore(rows, maker, encoded=encoded.numbers.get(name))
        for name, rows in dataset.splits.items()
    }
    torch.manual_seed(0)
    model = FusedModel(job).train()
    optimizer = torch.optim.Adam(trainable_parameters(model).values(), lr=0.01)
    found = []
    for step in range(6):
        torch.manual_seed(step)
        numbers = range(step % 3 * 8, step % 3 * 8 + 8) if step < 5 else []
        batch = training_batch(numbers, stores["train"], job, epoch=step)
        loss = model.total_loss(model.losses(model(batch), batch), batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(loss.detach()))
    model.eval()
    samples = [stores["validation"][number] for number in range(len(stores["validation"]))]
    batches = [collate(samples[i : i + 4], maker.modalities, blanks=True) for i in range(0, len(samples), 4)]
    outputs = collect(model, heads_of(model), batches, [*subsets(list(job.inputs)), ()])
    return found + [score(heads_of(model), job, part)["loss"] for part in outputs]


def lists_of_pictures(folder: Path) -> None:
    """Rows with up to three pictures each instead of one."""
    path = folder / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    pictures = [row.get("image") for row in rows]
    for number, row in enumerate(rows):
        several = [name for name in pictures[number : number + number % 4] if name]
        row["image"] = several or None
    tiny_jobs.write_rows(path, rows)


def lists_of_words(folder: Path) -> None:
    path = folder / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for number, row in enumerate(rows):
        row["text"] = row["text"].replace("?", " ?").split()[: 1 + number % 5]
        row["tags"] = ["O" if word != "colour" else "B-x" for word in row["text"]]
    tiny_jobs.write_rows(path, rows)


CASES: dict[str, tuple[Callable[[Path], None] | None, dict[str, Any]]] = {
    "pooled": (
        None,
        {
            "inputs.text.optional": True,
            "train.input_dropout": 0.3,
            "train.subset_loss": {"draw": "each"},
            "inputs.image.augment": [{"type": "flip"}],
            "align.standardize": True,
        },
    ),
    "several pictures each, all tokens": (
        lists_of_pictures,
        {
            "inputs.image.encoder": {"type": "huggingface", "model": "VIT", "pool": "none", "hidden_states": [1, -1]},
            "inputs.image.max_items": 3,
            "inputs.text.encoder.pool": "none",
            "align": {"type": "transformer", "dim": 16, "queries": 2, "heads": 2, "layers": 1},
            "fusion": {"type": "transformer", "layers": 1, "heads": 2},
        },
    ),
    "tags of words": (
        lists_of_words,
        {
            "inputs.text.encoder.pool": "none",
            "tasks": {"tags": {"type": "tagging", "input": "text", "column": "tags"}},
            "train.early_stopping": None,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_same_losses_with_and_without(
    case: str, tmp_path: Path, encoders: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, overrides = CASES[case]
    tiny_jobs.make_rows(tmp_path, 48)
    if prepare:
        prepare(tmp_path)
        tiny_jobs.write_rows(tmp_path / "test.jsonl", [])
    job = tiny_jobs.tiny_job(
        tmp_path,
        **{"data.test": None, "inputs.text.encoder": {"type": "huggingface", "model": encoders.bert}},
        **json.loads(json.dumps(overrides).replace('"VIT"', json.dumps(encoders.vit))),
    )
    job, dataset = load_dataset(job)
    without = trained(job, dataset, Encoded())
    encoded = encode(job, dataset)
    assert "text" in encoded.values

    def run(*_: Any, **__: Any) -> None:
        raise AssertionError("a frozen encoder ran though all of its outputs are known")

    monkeypatch.setattr(HuggingFaceEncoder, "forward", run)
    assert trained(job, dataset, encoded) == pytest.approx(without, rel=1e-6, abs=1e-6)


def test_the_next_run_encodes_nothing(
    loaded: tuple[Job, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, dataset = loaded
    lines: list[str] = []
    first = encode(job, dataset, lines.append)
    known = first.values["text"].places
    assert lines[0].startswith("cache: text 0 of 3 values known, 0.0 MB at ")
    assert lines[1].startswith("cache: text: 3 values added in ")
    monkeypatch.setattr(feature_cache, "build_encoder", None)
    lines.clear()
    other = changed(job, inputs_text={"optional": True}, train={"epochs": 3}, inputs_image={"size": 16})
    second = encode(other, dataset, lines.append)
    assert len(lines) == 1
    assert lines[0].startswith("cache: text 3 of 3 values known")
    assert second.values["text"].places.nbytes == known.nbytes > 0


def test_rows_that_came_later_are_added(loaded: tuple[Job, Dataset]) -> None:
    job, dataset = loaded
    encode(job, Dataset({name: rows[:1] for name, rows in dataset.splits.items()}, {}, {}))
    lines: list[str] = []
    encoded = encode(job, dataset, lines.append)
    assert not lines[0].startswith(("cache: text 0 of", "cache: text 3 of"))
    assert len(shards(job)) == 2
    assert encoded.values["text"].places.known.all()


def test_runs_at_the_same_time_share_the_work(
    loaded: tuple[Job, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, dataset = loaded
    monkeypatch.setattr(feature_cache, "_ROUND", 1)
    monkeypatch.setattr(feature_cache, "_SHARD_SECONDS", 0.0)
    write, sizes = ShardFolder.write, []

    def write_and_let_another_run_go_on(self: ShardFolder, made: Any, width: int) -> None:
        write(self, made, width)
        sizes.append(len(made))
        if len(sizes) == 1:
            encode(job, dataset)

    monkeypatch.setattr(ShardFolder, "write", write_and_let_another_run_go_on)
    assert encode(job, dataset).values["text"].places.known.all()
    assert sizes == [1, 1, 1]


def test_whatever_changes_the_outputs_changes_the_key(
    loaded: tuple[Job, Dataset], tmp_path: Path, encoders: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, dataset = loaded
    bert = tmp_path / "bert"
    shutil.copytree(encoders.bert, bert)

    def folder_of(job: Job, precision: str = "fp32") -> str:
        return encode_frozen(job, dataset.splits, 0, 1, CPU, precision, lambda _: None).values["text"].places.shards[0].path.split("/")[-2]  # fmt: skip

    first = folder_of(job)
    around = {"optional": True, "align": job.align}
    moved = changed(job, inputs_text_encoder={"model": str(bert), "lr": 0.1}, inputs_text=around)
    assert folder_of(moved) == first
    others = [
        folder_of(changed(job, inputs_text={"max_tokens": 3})),
        folder_of(changed(job, inputs_text_encoder={"pool": "first"})),
        folder_of(changed(job, inputs_text_encoder={"hidden_states": (1, -1)})),
        folder_of(job, "bf16"),
    ]
    weights = bert / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    others.append(folder_of(moved))
    monkeypatch.setattr(identity, "version", lambda name: "9.9")
    others.append(folder_of(job))
    assert len({first, *others}) == 7


OWN = """
import torch
from torch import nn

from rayfuse.model.encoders import Encoder
from rayfuse.model.tokens import one_token


class Corner(Encoder):
    width = 12

    def __init__(self, options, source):
        super().__init__(options, source)
        self.scale = nn.Parameter({scale})
        self.dropout = nn.Dropout(0.5)

    def forward(self, pixel_values):
        return one_token(self.dropout(pixel_values[..., :2, :2].flatten(1)) * self.scale)
"""


def own_job(folder: Path, monkeypatch: pytest.MonkeyPatch, scale: str) -> Job:
    """A job whose pictures have a frozen encoder of one's own, in a module that is imported anew."""
    (folder / "own_corner.py").write_text(OWN.format(scale=scale))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "own_corner", raising=False)
    return tiny_jobs.tiny_job(
        folder, **{"inputs.image.encoder": {"type": "own_corner:Corner", "train": "frozen"}}
    )


def test_a_frozen_encoder_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, dataset = load_dataset(own_job(tmp_path, monkeypatch, "torch.tensor(2.0)"))
    without = trained(job, dataset, Encoded())
    encoded = encode(job, dataset)
    assert "encoders.image.encoder.scale" not in trainable_parameters(FusedModel(job))
    first = encoded.values["image"].places.shards[0].path
    monkeypatch.setattr(FrozenEncoder, "forward", None)
    assert trained(job, dataset, encoded) == pytest.approx(without, rel=1e-6, abs=1e-6)
    monkeypatch.undo()
    job = own_job(tmp_path, monkeypatch, "torch.tensor(3.0)")
    other = encode(job, dataset).values["image"].places.shards[0].path
    assert Path(other).parent != Path(first).parent


def test_one_that_draws_its_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, dataset = load_dataset(own_job(tmp_path, monkeypatch, "torch.randn(1)"))
    with pytest.raises(
        SpecError, match=r"own_corner:Corner: `train: frozen` .* draws some of them at random"
    ):
        encode(job, dataset)


def test_a_broken_shard_is_made_anew(loaded: tuple[Job, Dataset]) -> None:
    job, dataset = loaded
    encode(job, dataset)
    [path] = Path(job.output.storage).glob("cache/*/*.safetensors")
    path.write_bytes(path.read_bytes()[:-5])
    lines: list[str] = []
    assert encode(job, dataset, lines.append).values["text"].places.known.all()
    assert lines[0].startswith(f"WARNING cache: file://{path}: ")
    assert lines[1].startswith("cache: text 0 of 3 values known")


def test_a_folder_at_a_url(
    loaded: tuple[Job, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    job, dataset = loaded
    here = trained(job, dataset, encode(job, dataset))
    remote = changed(job, data={"cache": f"memory://{tmp_path.name}"})
    for _ in range(2):
        assert trained(remote, dataset, encode(remote, dataset)) == here
    assert len(fsspec.filesystem("memory").glob(f"/{tmp_path.name}/*/*.safetensors")) == 1
    assert len(list((tmp_path / "home/rayfuse/features").iterdir())) == 1


def test_workers_share_the_work(loaded: tuple[Job, Dataset], monkeypatch: pytest.MonkeyPatch) -> None:
    job, dataset = loaded
    alone = trained(job, dataset, encode(changed(job, data={"cache": "memory://alone"}), dataset))
    barrier, board = threading.Barrier(3), [None] * 3

    def gather(self: Any, mine: Any) -> list[Any]:
        board[self.rank] = mine
        barrier.wait()
        found = list(board)
        barrier.wait()
        return found

    monkeypatch.setattr(feature_cache._Ranks, "gather", gather)
    monkeypatch.setattr(
        feature_cache._Ranks,
        "of_first",
        lambda self, make: self.gather(make() if self.rank == 0 else None)[0],
    )
    monkeypatch.setattr(feature_cache, "_ROUND", 1)
    found: dict[int, Encoded] = {}
    said: list[str] = []

    def run(rank: int) -> None:
        found[rank] = encode_frozen(job, dataset.splits, rank, 3, CPU, "fp32", said.append)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(shards(job)) == 3
    assert len(said) == 2
    for rank in range(3):
        assert trained(job, dataset, found[rank]) == pytest.approx(alone, rel=1e-6)


def test_values_that_hold_nothing_are_remembered(
    loaded: tuple[Job, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, dataset = loaded
    job = changed(job, inputs_text={"optional": True})
    opened: list[str] = []
    decode = TextModality.decode

    def without_some(self: TextModality, value: Any) -> Any:
        opened.append(value)
        if "here" in value:
            raise MissingInput("it holds nothing")
        return decode(self, value)

    monkeypatch.setattr(TextModality, "decode", without_some)
    encoded = encode(job, dataset)
    assert len(opened) == 3
    assert encode(job, dataset).values["text"].places.known.all()
    assert len(opened) == 3
    rows = dataset.splits["train"]
    store = SampleStore(
        rows, SampleMaker(job.inputs, job.tasks, encoded.values), encoded=encoded.numbers["train"]
    )
    present = ["text" in store[number].features for number in range(len(rows))]
    assert present == ["here" not in row.values["text"] for row in rows]
    assert len(set(present)) == 2


def test_an_augmented_input_is_left_out_and_said(loaded: tuple[Job, Dataset]) -> None:
    job, dataset = loaded
    lines: list[str] = []
    encoded = encode(changed(job, inputs_text={"augment": [{"type": "swap"}]}), dataset, lines.append)
    assert encoded.values == {}
    assert lines == ["cache: text is encoded anew every time: inputs.text.augment changes its training rows"]
    assert encode(changed(job, data={"cache": "off"}), dataset, lines.append).values == {}
    assert len(lines) == 1
    assert shards(job) == []


def test_a_disk_without_room_is_said_early(
    loaded: tuple[Job, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(
        ResourceError, match=r"data.cache: 3 values of `text` need about .*or write `cache: off`"
    ):
        encode(*loaded)


def test_what_is_cached_is_neither_read_nor_decoded_again(
    loaded: tuple[Job, Dataset], tmp_path: Path, encoders: SimpleNamespace
) -> None:
    picture = {"encoder": {"type": "huggingface", "model": encoders.vit}}
    job, dataset = changed(loaded[0], inputs_image=picture), loaded[1]
    encoded = encode(job, dataset)
    for path in tmp_path.glob("*.png"):
        path.unlink()
    maker = SampleMaker(job.inputs, job.tasks, encoded.values)
    store = SampleStore(dataset.splits["train"], maker, encoded=encoded.numbers["train"])
    batch = training_batch(range(8), store, job, 0)
    assert {
        name: part.features is not None and TOKENS in part.features for name, part in batch.inputs.items()
    } == {
        "image": True,
        "text": True,
    }
