"""Feature cache: same losses with and without it, shared by runs, never stale."""

import io
import json
import random
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
import tiny_encoders
import tiny_jobs
import torch
from PIL import Image

from rayfuse.data.cached_features import TOKENS, CachedFeatures
from rayfuse.data.collate import collate
from rayfuse.data.dataset import Dataset, load_dataset
from rayfuse.data.encoding_store import EncodingStore
from rayfuse.data.sampler import SampleCache
from rayfuse.data.samples import Preprocessor
from rayfuse.data.train_batches import build_train_batch
from rayfuse.data.validation import content_keys_column
from rayfuse.errors import DataError, MissingInputError, ResourceError, SpecError
from rayfuse.modalities.text import TextModality
from rayfuse.model.encoders import fingerprint
from rayfuse.model.encoders.base import FrozenEncoder
from rayfuse.model.encoders.huggingface import HuggingFaceEncoder
from rayfuse.model.evaluation import collect_outputs, compute_metrics, nonempty_subsets
from rayfuse.model.fused import FusedModel, task_heads, trainable_parameters
from rayfuse.spec.job import Job
from rayfuse.training import feature_cache
from rayfuse.training.distributed import DistributedContext
from rayfuse.training.feature_cache import encode_frozen_inputs


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


def encode(job: Job, dataset: Dataset, log: Callable[[str], None] = lambda _: None) -> CachedFeatures:
    return encode_frozen_inputs(job, dataset.splits, DistributedContext(), "fp32", log)


def changed(job: Job, **parts: dict[str, Any]) -> Job:
    """Return the job with other values in its blocks: `inputs_text={"max_tokens": 3}`."""
    content = job.model_dump()
    for path, new in parts.items():
        block = content
        for key in path.split("_"):
            block = block[key]
        block.update(new)
    return Job.model_validate(content)


def shards(job: Job) -> list[str]:
    return sorted(path.parent.name for path in Path(job.output.storage).glob("cache/*/*.safetensors"))


def trained(job: Job, dataset: Dataset, encoded: CachedFeatures) -> list[float]:
    """Return the losses of six steps over augmented rows with dropout and views, then the validation losses."""
    preprocessor = Preprocessor(job.inputs, job.tasks, encoded.modalities)
    stores = {
        name: SampleCache(rows, preprocessor, cached_indices=encoded.value_indices.get(name))
        for name, rows in dataset.splits.items()
    }
    torch.manual_seed(0)
    model = FusedModel(job).train()
    optimizer = torch.optim.Adam(trainable_parameters(model).values(), lr=0.01)
    found = []
    for step in range(6):
        torch.manual_seed(step)
        numbers = range(step % 3 * 8, step % 3 * 8 + 8) if step < 5 else []
        batch = build_train_batch(numbers, stores["train"], job, epoch=step)
        loss = model.total_loss(model.losses(model(batch), batch), batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(loss.detach()))
    model.eval()
    samples = [stores["validation"][number] for number in range(len(stores["validation"]))]
    batches = [
        collate(samples[i : i + 4], preprocessor.modalities, add_dummies=True)
        for i in range(0, len(samples), 4)
    ]
    outputs = collect_outputs(model, task_heads(model), batches, [*nonempty_subsets(list(job.inputs)), ()])
    return found + [compute_metrics(task_heads(model), job, part)["loss"] for part in outputs]


def lists_of_images(folder: Path) -> None:
    """Write rows with up to three images each instead of one."""
    path = folder / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    images = [row.get("image") for row in rows]
    for number, row in enumerate(rows):
        several = [name for name in images[number : number + number % 4] if name]
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
            "train.modality_dropout": 0.3,
            "train.subset_loss": {"sampling": "each"},
            "inputs.image.augment": [{"type": "horizontal_flip"}],
            "align.standardize": True,
        },
    ),
    "several images each, all tokens": (
        lists_of_images,
        {
            "inputs.image.encoder": {"type": "huggingface", "model": "VIT", "pool": "none", "hidden_states": [1, -1]},
            "inputs.image.max_items": 3,
            "inputs.text.encoder.pool": "none",
            "align": {"type": "transformer", "dim": 16, "num_queries": 2, "heads": 2, "layers": 1},
            "fusion": {"type": "transformer", "layers": 1, "heads": 2},
        },
    ),
    "next to n-grams": (
        None,
        {
            "inputs.text.encoder": {"type": "ngrams", "dropout": 0, "pretrained": {"type": "huggingface", "model": "BERT"}},
            "inputs.text.optional": True,
            "train.subset_loss": {"sampling": "each"},
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
def test_same_losses_with_and_without_the_cache(
    case: str, tmp_path: Path, encoders: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, overrides = CASES[case]
    content = json.dumps(overrides)
    for name in ("vit", "bert"):
        content = content.replace(f'"{name.upper()}"', json.dumps(getattr(encoders, name)))
    tiny_jobs.make_rows(tmp_path, 48)
    if prepare:
        prepare(tmp_path)
        tiny_jobs.write_rows(tmp_path / "test.jsonl", [])
    job = tiny_jobs.tiny_job(
        tmp_path,
        **(
            {"data.test": None, "inputs.text.encoder": {"type": "huggingface", "model": encoders.bert}}
            | json.loads(content)
        ),
    )
    job, dataset = load_dataset(job)
    without = trained(job, dataset, CachedFeatures())
    encoded = encode(job, dataset)
    assert "text" in encoded.modalities

    def run(*_: Any, **__: Any) -> None:
        raise AssertionError("a frozen encoder ran though all of its outputs are cached")

    monkeypatch.setattr(HuggingFaceEncoder, "forward", run)
    assert trained(job, dataset, encoded) == pytest.approx(without, rel=1e-6, abs=1e-6)


def test_the_next_run_encodes_nothing(
    loaded: tuple[Job, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, dataset = loaded
    lines: list[str] = []
    first = encode(job, dataset, lines.append)
    known = first.modalities["text"].index
    assert lines[0].startswith("cache: text 0 of 3 values cached, 0.0 MB at ")
    assert lines[1].startswith("cache: text: 3 values added in ")
    monkeypatch.setattr(feature_cache, "build_encoder", None)
    lines.clear()
    other = changed(job, inputs_text={"optional": True}, train={"epochs": 3}, inputs_image={"size": 16})
    second = encode(other, dataset, lines.append)
    assert len(lines) == 1
    assert lines[0].startswith("cache: text 3 of 3 values cached")
    assert second.modalities["text"].index.nbytes == known.nbytes > 0


def test_new_rows_are_added(loaded: tuple[Job, Dataset]) -> None:
    job, dataset = loaded
    encode(job, Dataset({name: rows[:1] for name, rows in dataset.splits.items()}, {}, {}))
    lines: list[str] = []
    encoded = encode(job, dataset, lines.append)
    assert not lines[0].startswith(("cache: text 0 of", "cache: text 3 of"))
    assert len(shards(job)) == 2
    assert encoded.modalities["text"].index.is_cached.all()


def test_concurrent_runs_share_the_work(loaded: tuple[Job, Dataset], monkeypatch: pytest.MonkeyPatch) -> None:
    job, dataset = loaded
    monkeypatch.setattr(feature_cache, "_VALUES_PER_SYNC", 1)
    monkeypatch.setattr(feature_cache, "_SHARD_SECONDS", 0.0)
    write, sizes = EncodingStore.write, []

    def write_and_run_concurrently(self: EncodingStore, made: Any, width: int) -> None:
        write(self, made, width)
        sizes.append(len(made))
        if len(sizes) == 1:
            encode(job, dataset)

    monkeypatch.setattr(EncodingStore, "write", write_and_run_concurrently)
    assert encode(job, dataset).modalities["text"].index.is_cached.all()
    assert sizes == [1, 1, 1]


def test_the_fingerprint_covers_all_that_affects_the_outputs(
    loaded: tuple[Job, Dataset], tmp_path: Path, encoders: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, dataset = loaded
    bert = tmp_path / "bert"
    shutil.copytree(encoders.bert, bert)

    def folder_of(job: Job, precision: str = "fp32") -> str:
        return encode_frozen_inputs(job, dataset.splits, DistributedContext(), precision, lambda _: None).modalities["text"].index.shards[0].path.split("/")[-2]  # fmt: skip

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
    monkeypatch.setattr(fingerprint, "version", lambda name: "9.9")
    others.append(folder_of(job))
    assert len({first, *others}) == 7


OWN = """
import torch
from torch import nn

from rayfuse.model.encoders import Encoder
from rayfuse.model.tokens import as_single_token


class Corner(Encoder):
    width = 12

    def __init__(self, options, source):
        super().__init__(options, source)
        self.scale = nn.Parameter({scale})
        self.dropout = nn.Dropout(0.5)

    def forward(self, pixel_values):
        return as_single_token(self.dropout(pixel_values[..., :2, :2].flatten(1)) * self.scale)
"""


def custom_job(folder: Path, monkeypatch: pytest.MonkeyPatch, scale: str) -> Job:
    """Return a job with a frozen custom encoder of images, in a module that is imported again."""
    (folder / "own_corner.py").write_text(OWN.format(scale=scale))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "own_corner", raising=False)
    return tiny_jobs.tiny_job(
        folder, **{"inputs.image.encoder": {"type": "own_corner:Corner", "train": "frozen"}}
    )


def test_a_frozen_custom_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, dataset = load_dataset(custom_job(tmp_path, monkeypatch, "torch.tensor(2.0)"))
    without = trained(job, dataset, CachedFeatures())
    encoded = encode(job, dataset)
    assert "encoders.image.encoder.scale" not in trainable_parameters(FusedModel(job))
    first = encoded.modalities["image"].index.shards[0].path
    monkeypatch.setattr(FrozenEncoder, "forward", None)
    assert trained(job, dataset, encoded) == pytest.approx(without, rel=1e-6, abs=1e-6)
    monkeypatch.undo()
    job = custom_job(tmp_path, monkeypatch, "torch.tensor(3.0)")
    other = encode(job, dataset).modalities["image"].index.shards[0].path
    assert Path(other).parent != Path(first).parent


def test_a_custom_encoder_with_random_weights_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, dataset = load_dataset(custom_job(tmp_path, monkeypatch, "torch.randn(1)"))
    with pytest.raises(
        SpecError,
        match=r"own_corner:Corner: `train: frozen` requires fixed weights, and some are drawn at random",
    ):
        encode(job, dataset)


def test_the_values_of_a_corrupt_shard_are_encoded_again(loaded: tuple[Job, Dataset]) -> None:
    job, dataset = loaded
    encode(job, dataset)
    [path] = Path(job.output.storage).glob("cache/*/*.safetensors")
    path.write_bytes(path.read_bytes()[:-5])
    lines: list[str] = []
    assert encode(job, dataset, lines.append).modalities["text"].index.is_cached.all()
    assert lines[0].startswith(f"WARNING cache: file://{path}: ")
    assert lines[1].startswith("cache: text 0 of 3 values cached")


def test_a_cache_at_a_url(
    loaded: tuple[Job, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    job, dataset = loaded
    here = trained(job, dataset, encode(job, dataset))
    remote = changed(job, data={"feature_cache": f"memory://{tmp_path.name}"})
    for _ in range(2):
        assert trained(remote, dataset, encode(remote, dataset)) == here
    assert len(fsspec.filesystem("memory").glob(f"/{tmp_path.name}/*/*.safetensors")) == 1
    assert len(list((tmp_path / "home/rayfuse/features").iterdir())) == 1


def test_workers_share_the_work(loaded: tuple[Job, Dataset], monkeypatch: pytest.MonkeyPatch) -> None:
    job, dataset = loaded
    alone = trained(job, dataset, encode(changed(job, data={"feature_cache": "memory://alone"}), dataset))
    barrier, shared = threading.Barrier(3), [None] * 3

    class ThreadContext(DistributedContext):
        """A context whose ranks are threads of this process."""

        def all_gather(self, value: Any) -> list[Any]:
            shared[self.rank] = value
            barrier.wait()
            values = list(shared)
            barrier.wait()
            return values

        def broadcast(self, value: Any) -> Any:
            return self.all_gather(value)[0]

    monkeypatch.setattr(feature_cache, "_VALUES_PER_SYNC", 1)
    found: dict[int, CachedFeatures] = {}
    lines: list[str] = []

    def run(rank: int) -> None:
        found[rank] = encode_frozen_inputs(job, dataset.splits, ThreadContext(rank, 3), "fp32", lines.append)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(shards(job)) == 3
    assert len(lines) == 2
    for rank in range(3):
        assert trained(job, dataset, found[rank]) == pytest.approx(alone, rel=1e-6)


def test_values_that_hold_nothing_are_cached(
    loaded: tuple[Job, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, dataset = loaded
    job = changed(job, inputs_text={"optional": True})
    opened: list[str] = []
    decode = TextModality.decode

    def without_some(self: TextModality, value: Any) -> Any:
        opened.append(value)
        if "here" in value:
            raise MissingInputError("it holds nothing")
        return decode(self, value)

    monkeypatch.setattr(TextModality, "decode", without_some)
    encoded = encode(job, dataset)
    assert len(opened) == 3
    assert encode(job, dataset).modalities["text"].index.is_cached.all()
    assert len(opened) == 3
    rows = dataset.splits["train"]
    store = SampleCache(
        rows,
        Preprocessor(job.inputs, job.tasks, encoded.modalities),
        cached_indices=encoded.value_indices["train"],
    )
    present = ["text" in store[number].features for number in range(len(rows))]
    assert present == ["here" not in row.values["text"] for row in rows]
    assert len(set(present)) == 2


def test_an_augmented_input_is_not_cached(loaded: tuple[Job, Dataset]) -> None:
    job, dataset = loaded
    lines: list[str] = []
    encoded = encode(changed(job, inputs_text={"augment": [{"type": "token_swap"}]}), dataset, lines.append)
    assert encoded.modalities == {}
    assert lines == ["cache: text is not cached: inputs.text.augment changes its training rows in each epoch"]
    assert encode(changed(job, data={"feature_cache": "off"}), dataset, lines.append).modalities == {}
    assert len(lines) == 1
    assert shards(job) == []


def test_a_full_disk_is_reported_after_the_first_values(
    loaded: tuple[Job, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(
        ResourceError,
        match=r"data.feature_cache: 3 values of `text` need about .*or write `feature_cache: off`",
    ):
        encode(*loaded)


def test_a_file_that_changes_after_validation_is_not_cached_under_its_old_content(
    tmp_path: Path, encoders: SimpleNamespace
) -> None:
    image = {"type": "huggingface", "model": encoders.vit}
    job, dataset = load_dataset(tiny_jobs.tiny_job(tmp_path, **{"inputs.image.encoder": image}))
    row = next(row for row in dataset.splits["train"] if row.values.get("image"))
    path = Path(row.folder, row.values["image"])
    tiny_jobs.write_image(path, "green", random.Random(99))
    with pytest.raises(DataError, match=rf"image: {path.name} has changed since the run validated it"):
        encode(job, dataset)


def test_cached_values_are_neither_read_nor_decoded_again(
    loaded: tuple[Job, Dataset], tmp_path: Path, encoders: SimpleNamespace
) -> None:
    image = {"encoder": {"type": "huggingface", "model": encoders.vit}}
    job, dataset = changed(loaded[0], inputs_image=image), loaded[1]
    encoded = encode(job, dataset)
    for path in tmp_path.glob("*.png"):
        path.unlink()
    preprocessor = Preprocessor(job.inputs, job.tasks, encoded.modalities)
    store = SampleCache(dataset.splits["train"], preprocessor, cached_indices=encoded.value_indices["train"])
    batch = build_train_batch(range(8), store, job, 0)
    assert {
        name: part.features is not None and TOKENS in part.features for name, part in batch.inputs.items()
    } == {
        "image": True,
        "text": True,
    }


def test_each_media_file_is_opened_twice_with_a_cold_cache(
    tmp_path: Path, encoders: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once to validate and hash it, and once to encode it; a later run only validates it.

    The data report reads the images of a sample of rows once more: all of these.
    """
    memory, folder = fsspec.filesystem("memory"), f"media/{tmp_path.name}"
    rows = []
    for number in range(12):
        content = io.BytesIO()
        Image.new("RGB", (8, 8), (number, 0, 0)).save(content, "PNG")
        memory.pipe_file(f"/{folder}/{number}.png", content.getvalue())
        images = [f"memory://{folder}/{n}.png" for n in (number, (number + 1) % 12)]
        rows.append({"image": images, "text": "which?", "label": "ab"[number % 2]})
    tiny_jobs.write_rows(tmp_path / "train.jsonl", rows)
    encoder = {"type": "huggingface", "model": encoders.vit}
    image = {"max_items": 2, "range": "dtype", "encoder": encoder}
    overrides = {f"inputs.image.{key}": value for key, value in image.items()}
    job = tiny_jobs.tiny_job(tmp_path, **{"data.test": None, **overrides})
    opens: Counter[str] = Counter()
    cat_file = type(memory).cat_file

    def count_opens(self: Any, path: str, *args: Any, **kwargs: Any) -> bytes:
        opens[path] += 1
        return cat_file(self, path, *args, **kwargs)

    monkeypatch.setattr(type(memory), "cat_file", count_opens)
    fitted, dataset = load_dataset(job)
    assert set(opens.values()) == {4}, "each image is in two rows, and each row is validated and reported on"
    opens.clear()
    assert encode(fitted, dataset).modalities["image"].index.is_cached.all()
    assert opens == {f"/{folder}/{number}.png": 1 for number in range(12)}
    opens.clear()
    encode(fitted, dataset)
    assert not opens
    keys = dataset.splits["train"].get_column(content_keys_column("image"))
    assert keys is not None
    assert keys.shape == (len(dataset.splits["train"]), 2)
