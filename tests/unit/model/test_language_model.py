"""Causal language models: losses in chunks, and generation."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_language_models
import torch
from pydantic import TypeAdapter
from torch.utils._python_dispatch import TorchDispatchMode

from rayfuse.errors import DataError
from rayfuse.model import language_model
from rayfuse.model.language_model import CausalModel
from rayfuse.spec.encoders import PretrainedModelConfig
from rayfuse.spec.tasks.generation import DecodingConfig

GREEDY = TypeAdapter(DecodingConfig).validate_python({})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def load(models: Path, family: str, train: str = "full") -> CausalModel:
    folder = models / family
    if not folder.exists():
        tiny_language_models.FAMILIES[family](folder)
    options = TypeAdapter(PretrainedModelConfig).validate_python({"model": str(folder), "train": train})
    return CausalModel(options)


class Largest(TorchDispatchMode):
    """Size of the largest tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            self.numel = max(self.numel, tensor.numel())
        return out


def _tensors(found: Any) -> Iterator[torch.Tensor]:
    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, (tuple, list)):
        for one in found:
            yield from _tensors(one)


@pytest.mark.parametrize("family", tiny_language_models.FAMILIES)
def test_losses_in_chunks_are_those_of_the_whole_model(
    family: str, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(models, family)
    ids = torch.randint(0, 256, (2, 12))
    logits = model.transformer(ids).logits.float()
    wanted = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    wanted.sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    monkeypatch.setattr(language_model, "_MAX_LOGITS", 3 * logits.shape[-1])
    mask = torch.ones(2, 12, dtype=torch.bool)
    hidden = model.hidden_states(model.embed(ids), mask)
    losses, right = model.token_losses(hidden[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(losses, wanted)
    assert right.tolist() == (logits[:, :-1].argmax(2) == ids[:, 1:]).flatten().float().tolist()
    losses.sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-5, msg=name)


def test_memory_does_not_grow_with_tokens_times_vocabulary(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluation elsewhere keeps the logits of all tokens (transformers#15466)."""
    model = load(models, "smollm")
    vocabulary = model.transformer.config.vocab_size
    monkeypatch.setattr(language_model, "_MAX_LOGITS", 8 * vocabulary)
    hidden, ids = torch.randn(200, 16), torch.randint(0, 256, (200,))
    with torch.inference_mode(), Largest() as largest:
        model.token_losses(hidden, ids)
    assert largest.numel <= max(8 * vocabulary, hidden.numel(), vocabulary * 16)


@pytest.mark.parametrize("family", tiny_language_models.FAMILIES)
def test_greedy_tokens_do_not_depend_on_the_rest_of_the_batch(family: str, models: Path) -> None:
    """The rows are padded on the left, to the longest prompt."""
    model = load(models, family).eval()
    prompts = [torch.randint(0, 256, (length,)) for length in (9, 4, 6)]
    index = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True, padding_side="left")
    mask = torch.arange(9).unsqueeze(0) >= 9 - torch.tensor([[9], [4], [6]])
    with torch.inference_mode():
        together = model.generate(model.embed(index), mask, [257], 8, GREEDY)
        for row, prompt in enumerate(prompts):
            wanted = model.transformer.generate(
                prompt.unsqueeze(0), max_new_tokens=8, eos_token_id=257, pad_token_id=257, do_sample=False
            )[0, len(prompt) :]
            assert together[row, : len(wanted)].tolist() == wanted.tolist()


def test_settings_of_the_model_do_not_change_decoding(models: Path, tmp_path: Path) -> None:
    from transformers import GenerationConfig

    folder = tiny_language_models.llama(tmp_path)
    plain = load(models, "llama").eval()
    GenerationConfig(
        do_sample=True, temperature=5.0, repetition_penalty=3.0, eos_token_id=[257, 7]
    ).save_pretrained(folder)
    options = TypeAdapter(PretrainedModelConfig).validate_python({"model": str(folder)})
    changed = CausalModel(options)
    assert changed.stop_ids == [257, 7]
    embeddings, mask = plain.embed(torch.tensor([[5, 6, 7]])), torch.ones(1, 3, dtype=torch.bool)
    with torch.inference_mode():
        found = [model.generate(embeddings, mask, [257], 8, GREEDY) for model in (plain, changed)]
    assert found[0].tolist() == found[1].tolist()


@pytest.mark.parametrize(("train", "expected"), [("lora", "lora_"), ("last:1", "layers.1."), ("frozen", "")])
def test_what_is_trained(train: str, expected: str, models: Path) -> None:
    model = load(models, "llama", train)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert bool(trained) == bool(expected)
    assert all(expected in name or "norm" in name or "lm_head" in name for name in trained)
    model.train()
    assert model.model.training == (train != "frozen")


def test_a_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    options = TypeAdapter(PretrainedModelConfig).validate_python({"model": str(tmp_path)})
    with pytest.raises(DataError, match="cannot load a Hugging Face model"):
        CausalModel(options)
