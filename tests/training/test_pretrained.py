"""Hugging Face encoders of text, images and audio: trained parameters, determinism, loading and damaged files."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_encoders
import tiny_jobs
import tiny_language_models
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from variants import train_and_reload

from rayfuse.data.collate import collate
from rayfuse.data.dataset import load_dataset
from rayfuse.data.samples import Preprocessor, Sample
from rayfuse.errors import DataError, SpecError
from rayfuse.modalities import build_modality
from rayfuse.modalities.pretrained import resolve_model_path
from rayfuse.model.encoders import build_encoder
from rayfuse.model.encoders.base import Encoder
from rayfuse.model.encoders.huggingface import load_checkpoint
from rayfuse.model.fused import FusedModel
from rayfuse.spec.encoders import HuggingFaceEncoderConfig
from rayfuse.spec.inputs import AudioInput, Input

KINDS: dict[str, dict[str, Any]] = {
    "bert": {"type": "text", "max_tokens": 16},
    "roberta": {"type": "text", "max_tokens": 16},
    "gpt2": {"type": "text", "max_tokens": 16},
    "llama": {"type": "text", "max_tokens": 16},
    "vit": {"type": "image", "size": 16},
    "clip": {"type": "image", "size": 16},
    "dinov2": {"type": "image", "size": 16},
    "resnet": {"type": "image", "size": 16},
    "wav2vec2": {"type": "audio", "sample_rate": 8000, "max_seconds": 0.1},
    "hubert": {"type": "audio", "sample_rate": 8000, "max_seconds": 0.1},
    "ast": {"type": "audio", "sample_rate": 16000, "max_seconds": 0.3},
    "whisper": {"type": "audio", "sample_rate": 16000, "max_seconds": 1},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        torch.manual_seed(0)
        getattr(tiny_encoders, kind)(top / kind)
    return top


def options(folder: Path, kind: str, train: str = "frozen", **encoder: Any) -> Any:
    chosen = {"type": "huggingface", "model": str(folder), "train": train, **encoder}
    return TypeAdapter(Input).validate_python({"column": "x", **KINDS[kind], "encoder": chosen})


def features(source: Any, rows: int = 2) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    modality = build_modality(source)
    if source.type == "text":
        texts = [modality.process("red green blue"), modality.process("which colour?")]
        return {k: torch.from_numpy(v) for k, v in modality.collate(texts[:rows]).items()}
    return {k: torch.rand(rows, *v.shape) for k, v in modality.dummy_features().items()}


def trained(encoder: Encoder) -> list[str]:
    return [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]


def test_models_that_threads_load_at_once_have_tied_weights(tmp_path: Path) -> None:
    """While transformers loads a model, it replaces `tie_weights` of all models."""
    folder = str(tiny_language_models.smollm(tmp_path / "smollm"))

    def load(_: int) -> Any:
        return load_checkpoint(folder, auto_class="AutoModelForCausalLM")[0]

    with ThreadPoolExecutor(8) as pool:
        models = [*pool.map(load, range(24)), load(24)]
    assert all(model.lm_head.weight is model.get_input_embeddings().weight for model in models)


@pytest.mark.parametrize("kind", list(KINDS))
def test_frozen_encoder_stays_in_evaluation_mode(kind: str, models: Path) -> None:
    source = options(models / kind, kind)
    encoder = build_encoder(source).train()
    assert not trained(encoder)
    assert encoder.training
    assert not any(module.training for module in encoder.model.modules())
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    first, _ = encoder(**features(source))
    assert not first.requires_grad
    torch.testing.assert_close(first, encoder(**features(source))[0], rtol=0, atol=0)
    for name, tensor in encoder.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    assert first.shape == (2, 1, encoder.width)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "resnet"])
def test_lora_trains_only_adapters_and_preserves_initial_outputs(kind: str, models: Path) -> None:
    source = options(models / kind, kind, "lora", lora={"r": 2, "lora_alpha": 4})
    encoder = build_encoder(source)
    names = trained(encoder)
    assert names
    assert all("lora_" in name for name in names)
    frozen = build_encoder(options(models / kind, kind)).eval()
    torch.testing.assert_close(encoder.eval()(**features(source))[0], frozen(**features(source))[0])
    assert every_weight_gets_a_gradient(encoder, source)


@pytest.mark.parametrize("kind", list(KINDS))
def test_full_training_gives_every_trainable_weight_a_gradient(kind: str, models: Path) -> None:
    """Includes models whose configuration skips layers or masks positions at random in training."""
    source = options(models / kind, kind, "full")
    encoder = build_encoder(source)
    assert len(trained(encoder)) > 10
    assert not any("pooler" in name for name in trained(encoder))
    assert every_weight_gets_a_gradient(encoder, source)


def every_weight_gets_a_gradient(encoder: Encoder, source: Any) -> bool:
    for _ in range(3):
        encoder.train().zero_grad()
        (encoder(**features(source))[0] ** 2).sum().backward()
        assert not [n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    return True


@pytest.mark.parametrize("kind", ["wav2vec2", "whisper"])
def test_training_mode_is_deterministic_without_dropout(kind: str, models: Path) -> None:
    source = options(models / kind, kind, "full")
    encoder = build_encoder(source).train()
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for name, part in encoder.model.named_modules():
        for attribute in ("dropout", "activation_dropout"):
            if isinstance(getattr(part, attribute, None), float):
                setattr(part, attribute, 0.0)
        assert not isinstance(part, torch.nn.BatchNorm2d), name
    first, second = (encoder(**features(source))[0] for _ in range(2))
    torch.testing.assert_close(first, second)


def test_pooling(models: Path) -> None:
    tokens, _ = pooled(models, "none")
    assert tokens.shape == (2, 5, 16)
    mean, mask = pooled(models, "mean")
    assert mask.shape == (2, 1)
    first, _ = pooled(models, "first")
    torch.testing.assert_close(first[:, 0], tokens[:, 0])
    torch.testing.assert_close(mean[0, 0], tokens[0].mean(0))


def pooled(models: Path, pool: str) -> Any:
    source = options(models / "bert", "bert", pool=pool)
    return build_encoder(source).eval()(**features(source))


def test_hidden_states_of_several_layers_are_concatenated(models: Path, tmp_path: Path) -> None:
    source = options(models / "bert", "bert", hidden_states=[1, -1], pool="none")
    encoder = build_encoder(source).eval()
    states = encoder.model(**features(source), output_hidden_states=True).hidden_states
    both, _ = encoder(**features(source))
    assert both.shape[2] == encoder.width == 32
    torch.testing.assert_close(both[..., :16], torch.nn.functional.layer_norm(states[1], (16,)))
    torch.testing.assert_close(both[..., 16:], torch.nn.functional.layer_norm(states[-1], (16,)))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "vit", "wav2vec2", "ast", "whisper", "clip"])
def test_hidden_states_train(kind: str, models: Path) -> None:
    source = options(models / kind, kind, "lora", hidden_states=[0, -1])
    encoder = build_encoder(source).train()
    encoder(**features(source))[0].square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)


def test_invalid_hidden_states_are_rejected(models: Path) -> None:
    with pytest.raises(
        SpecError, match=r"hidden_states: 9, but .* has \d layers of one width; use numbers from 0 to"
    ):
        build_encoder(options(models / "bert", "bert", hidden_states=[9, -1]))
    with pytest.raises(SpecError, match="hidden_states: 1, but the layers of .* differ in width"):
        build_encoder(options(models / "resnet", "resnet", hidden_states=[1, -1]))


def test_padding_has_no_effect(models: Path) -> None:
    for pool in ("mean", "first", "none"):
        source = options(models / "bert", "bert", pool=pool)
        encoder = build_encoder(source).eval()
        alone, _ = encoder(**features(source, rows=1))
        modality = build_modality(source)
        rows = [modality.process("red green blue"), modality.process("red " * 10)]
        padded_batch, mask = encoder(**{k: torch.from_numpy(v) for k, v in modality.collate(rows).items()})
        torch.testing.assert_close(alone, padded_batch[:1, : alone.shape[1]], rtol=1e-5, atol=1e-5)
        if pool == "none":
            assert mask.sum(1).tolist() == [5, 12]


def test_convolutional_maps_become_tokens(models: Path) -> None:
    source = options(models / "resnet", "resnet", pool="none")
    encoder = build_encoder(source).eval()
    tokens, mask = encoder(**features(source))
    assert tokens.shape[0] == 2
    assert tokens.shape[2] == encoder.width == 16
    assert mask.all()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_last_pool_of_causal_models_ignores_padding(kind: str, models: Path) -> None:
    source = options(models / kind, kind, pool="last")
    encoder, modality = build_encoder(source).eval(), build_modality(source)
    rows = [modality.process("red green blue"), modality.process("red " * 10)]
    padded_batch, _ = encoder(**{k: torch.from_numpy(v) for k, v in modality.collate(rows).items()})
    alone, _ = encoder(**{k: torch.from_numpy(v) for k, v in modality.collate(rows[:1]).items()})
    torch.testing.assert_close(padded_batch[:1], alone, rtol=1e-5, atol=1e-5)
    hidden = encoder.model(**{k: torch.from_numpy(v) for k, v in modality.collate(rows[:1]).items()})
    torch.testing.assert_close(alone[0, 0], hidden.last_hidden_state[0, -1])
    with pytest.raises(SpecError, match="pool: first, but .* is a causal model .*; use pool: last or mean"):
        build_encoder(options(models / kind, kind, pool="first"))


@pytest.mark.parametrize("pool", ["last", "max", "attention"])
def test_frozen_encoder_with_a_learned_pool(pool: str, models: Path) -> None:
    source = options(models / "bert", "bert", pool=pool)
    encoder = build_encoder(source)
    vectors, mask = encoder(**features(source))
    assert vectors.shape == (2, 1, 16)
    assert mask.all()
    assert [name.partition(".")[0] for name in trained(encoder)] == ["pool"] * (
        3 if pool == "attention" else 0
    )
    assert not vectors.requires_grad or every_weight_gets_a_gradient(encoder, source)


LAST = {
    "bert": ("encoder.layer.1.",),
    "gpt2": ("h.1.", "ln_f."),
    "vit": ("layers.1.", "layernorm."),
    "dinov2": ("encoder.layer.1.", "layernorm."),
    "resnet": ("encoder.stages.1.",),
    "whisper": ("layers.0.", "layer_norm."),
    "hubert": ("encoder.layers.1.",),
    "ast": ("layers.1.", "layernorm."),
}


@pytest.mark.parametrize("kind", list(LAST))
def test_last_layers_and_modules_after_them_are_trained(kind: str, models: Path) -> None:
    source = options(models / kind, kind, "last:1")
    encoder = build_encoder(source)
    names = [name.removeprefix("model.") for name in trained(encoder)]
    for start in LAST[kind]:
        assert any(name.startswith(start) for name in names), (start, names)
    assert all(name.startswith(LAST[kind]) for name in names), names
    assert every_weight_gets_a_gradient(encoder, source)


def test_too_many_last_layers_are_rejected(models: Path) -> None:
    with pytest.raises(
        SpecError, match="train: last:3, but a BertModel has only 2 layers; use train: last:2"
    ):
        build_encoder(options(models / "bert", "bert", "last:3"))


def test_rows_are_independent_with_batch_norm(models: Path) -> None:
    source = options(models / "resnet", "resnet", "full")
    encoder, found = build_encoder(source).train(), features(source)
    together, _ = encoder(**found)
    alone, _ = encoder(pixel_values=found["pixel_values"][:1])
    torch.testing.assert_close(alone, together[:1])


@pytest.mark.parametrize("kind", ["bert", "gpt2", "vit", "resnet", "clip"])
def test_partial_and_full_training_reload(kind: str, models: Path, tmp_path: Path) -> None:
    name = "text" if KINDS[kind]["type"] == "text" else "image"
    block = {"type": "huggingface", "model": str(models / kind), "layer_decay": 0.5}
    for train in ("last:1", "full"):
        overrides = {f"inputs.{name}.encoder": {**block, "train": train}}
        train_and_reload(tmp_path / train, tiny_jobs.tiny_job(tmp_path, **overrides))


def test_audio_encoders_reload(models: Path, tmp_path: Path) -> None:
    for kind in ("hubert", "ast"):
        block = {"type": "huggingface", "model": str(models / kind), "train": "lora", "lora": {"r": 2}}
        overrides: dict[str, Any] = {"inputs.audio.encoder": block}
        overrides |= {"inputs.audio.sample_rate": KINDS[kind]["sample_rate"]}
        train_and_reload(tmp_path / kind, tiny_jobs.tiny_job(tmp_path, audio=True, **overrides))


@pytest.fixture
def in_a_store(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the URL of a copy of the tiny BERT, with an empty cache."""
    import fsspec

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    resolve_model_path.cache_clear()
    store = fsspec.filesystem("memory")
    for file in (models / "bert").iterdir():
        store.pipe_file(f"/models/bert/{file.name}", file.read_bytes())
    store.pipe_file("/models/bert/own.py", b"raise SystemExit")
    return "memory://models/bert"


def test_model_at_a_url(in_a_store: str, tmp_path: Path) -> None:
    import fsspec

    block = {"type": "huggingface", "model": in_a_store, "train": "lora", "lora": {"r": 2}}
    train_and_reload(tmp_path, tiny_jobs.tiny_job(tmp_path, **{"inputs.text.encoder": block}))
    assert (tmp_path / "model/encoders/text/model.safetensors").is_file()
    first = Path(resolve_model_path(in_a_store))
    assert not (first / "own.py").exists()
    assert len(list(first.parent.iterdir())) == 1
    fsspec.filesystem("memory").pipe_file("/models/bert/notes.json", b"{}")
    resolve_model_path.cache_clear()
    assert resolve_model_path(in_a_store) != str(first)  # it changed


def test_missing_model_at_a_url(in_a_store: str) -> None:
    for url in ("memory://models/nothing", "zork://models/bert"):
        with pytest.raises(DataError, match=f"{url}: cannot read the model: "):
            resolve_model_path(url)


def cut_off(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def lose_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.0.attention.self.query.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_a_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.0.intermediate.dense.bias"] = torch.zeros(5)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def pickle_it(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (cut_off, "bert: cannot load a Hugging Face model: model.safetensors is incomplete or corrupted"),
        (
            lose_a_tensor,
            "its weights lack 1 tensors, such as encoder.layer.0.attention.self.query.weight; download the model again",
        ),
        (change_a_shape, "tensors in model.safetensors have other shapes than config.json defines"),
        (pickle_it, "no file named model.safetensors"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not valid JSON"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "zork"}'),
            "transformers has no model type `zork`",
        ),
        (shutil.rmtree, "cannot load a Hugging Face model: folder not found"),
    ],
)
def test_damaged_folders(change: Callable[[Path], Any], problem: str, models: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models / "bert", tmp_path / "bert"))
    change(folder)
    with pytest.raises(DataError, match=problem):
        build_encoder(options(folder, "bert"))


def test_code_in_a_folder_is_not_run(models: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models / "bert", tmp_path / "bert"))
    (folder / "config.json").write_text(
        '{"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModel": "own.M"}}'
    )
    (folder / "own.py").write_text("import pathlib\npathlib.Path('ran').touch()\n")
    with pytest.raises(DataError, match="it requires custom code, which is never run"):
        build_encoder(options(folder, "bert"))
    assert not Path("ran").exists()


def test_models_of_another_modality_are_rejected(models: Path) -> None:
    with pytest.raises(
        SpecError, match="a ViTModel reads pixel_values and cannot encode text; use a model that"
    ):
        build_encoder(options(models / "vit", "bert"))
    with pytest.raises(SpecError, match="a BertModel reads input_ids and cannot encode audio"):
        build_encoder(options(models / "bert", "wav2vec2"))


def test_max_tokens_above_the_positions_of_the_model(models: Path) -> None:
    source = options(models / "bert", "bert").model_copy(update={"max_tokens": 33})
    with pytest.raises(
        SpecError, match="max_tokens: 33 is above the 32 positions of .*/bert; use max_tokens: 32"
    ):
        build_encoder(source)


def test_missing_lora_targets(models: Path) -> None:
    for kind, targets in (("bert", ["q_proj"]), ("resnet", "all-linear")):
        with pytest.raises(
            SpecError,
            match="lora.target_modules: .*: no such modules in a .*; name linear layers of it, or use",
        ):
            build_encoder(options(models / kind, kind, "lora", lora={"target_modules": targets}))
    encoder = build_encoder(options(models / "bert", "bert", "lora", lora={"target_modules": ["query"]}))
    assert all(".query." in name for name in trained(encoder))


@pytest.mark.parametrize(
    "fusion", [{"type": "concat", "hidden": 16}, {"type": "transformer", "layers": 1, "heads": 2}]
)
def test_absent_texts_of_many_tokens_have_no_effect(
    fusion: dict[str, Any], models: Path, tmp_path: Path
) -> None:
    """Compare masked tokens of a text that other samples have with a batch without texts."""
    encoder = {"type": "huggingface", "model": str(models / "bert"), "pool": "none"}
    overrides = {"inputs.text.encoder": encoder, "inputs.text.optional": True, "fusion": fusion}
    job, dataset = load_dataset(tiny_jobs.tiny_job(tmp_path, **overrides))
    preprocessor = Preprocessor(job.inputs, job.tasks)
    samples = [
        sample for row in dataset.splits["test"] if "image" in (sample := preprocessor.from_row(row)).features
    ]
    torch.manual_seed(0)
    model = FusedModel(job).eval()
    torch.nn.init.normal_(model.alignment["text"].placeholder)
    without = [Sample({"image": sample.features["image"]}, sample.keys, sample.targets) for sample in samples]
    with torch.no_grad():
        alone = model(collate(without, preprocessor.modalities)).tasks["answer"]
        together = model(collate([samples[0], *without], preprocessor.modalities)).tasks["answer"]
        dropped = model(collate(samples, preprocessor.modalities).select_inputs(["image"])).tasks["answer"]
    torch.testing.assert_close(together[1:], alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dropped, alone, rtol=1e-5, atol=1e-5)


def speech_vectors(model: Path, max_seconds: float, *clips: np.ndarray) -> torch.Tensor:
    """Return the pooled vector of each clip, encoded in one batch."""
    source = AudioInput(
        type="audio", column="clip", sample_rate=16000, max_seconds=max_seconds,
        encoder=HuggingFaceEncoderConfig(type="huggingface", model=str(model)),
    )  # fmt: skip
    modality = build_modality(source)
    batch = modality.collate([modality.process(clip[: int(max_seconds * 16000)]) for clip in clips])
    encoder = build_encoder(source).eval()
    with torch.no_grad():
        return encoder(**{name: torch.as_tensor(values) for name, values in batch.items()})[0][:, 0]


CHIRP = (0.1 * np.sin(2 * np.pi * np.linspace(300, 700, 16000) * np.arange(16000) / 16000)).astype(np.float32)
NOISE = np.random.default_rng(0).normal(0, 0.2, 40000).astype(np.float32)


@pytest.mark.parametrize(
    "kind", ["wav2vec2", "hubert", "wavlm", "unispeech", "unispeech_sat", "wav2vec2_bert"]
)
def test_a_clip_has_the_same_vector_for_any_max_seconds_and_neighbor(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tiny_encoders.speech(tmp_path, kind)
    [alone] = speech_vectors(model, 1.0, CHIRP)
    for max_seconds in (1.3, 2.5):
        [longer] = speech_vectors(model, max_seconds, CHIRP)
        together, other = speech_vectors(model, max_seconds, CHIRP, NOISE)
        for found in (longer, together):
            torch.testing.assert_close(found, alone, atol=1e-5, rtol=0)
        assert not torch.allclose(other, alone, atol=1e-2)


@pytest.mark.parametrize("kind", ["sew", "group_norm"])
def test_a_clip_whose_encoder_reads_padding_has_the_same_vector_with_any_neighbor(
    kind: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = tiny_encoders.speech(tmp_path, kind)
    [alone] = speech_vectors(model, 2.5, CHIRP)
    together, _ = speech_vectors(model, 2.5, CHIRP, NOISE)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_normalization_does_not_count_padding(tmp_path: Path) -> None:
    model = tiny_encoders.speech(tmp_path, "group_norm")
    source = AudioInput(
        type="audio", column="clip", sample_rate=16000, max_seconds=10,
        encoder=HuggingFaceEncoderConfig(type="huggingface", model=str(model)),
    )  # fmt: skip
    features = build_modality(source).process(CHIRP)
    assert features["input_values"][:16000].std() == pytest.approx(1, abs=1e-3)
    assert not features["input_values"][16000:].any()
    assert features["attention_mask"].sum() == 16000


def test_whisper_positions_are_truncated_to_max_seconds(models: Path) -> None:
    source = options(models / "whisper", "whisper", pool="none").model_copy(update={"max_seconds": 0.41})
    found = features(source)
    assert found["input_features"].shape[1:] == (8, 42)
    tokens, mask = build_encoder(source).eval()(**found)
    assert tokens.shape[:2] == mask.shape == (len(found["input_features"]), 21)
