"""Encoder–decoder language models: losses of target positions, compared with those of transformers."""

from pathlib import Path

import pytest
import tiny_language_models
import torch
from pydantic import TypeAdapter

from rayfuse.model import language_model
from rayfuse.model.encoder_decoder import EncoderDecoderModel
from rayfuse.spec.encoders import PretrainedModelConfig
from rayfuse.spec.tasks.generation import DecodingConfig

GREEDY = TypeAdapter(DecodingConfig).validate_python({})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def load(models: Path, family: str, train: str = "full") -> EncoderDecoderModel:
    folder = models / family
    if not folder.exists():
        tiny_language_models.randomize(tiny_language_models.ENCODER_DECODERS[family](folder))
    options = TypeAdapter(PretrainedModelConfig).validate_python({"model": str(folder), "train": train})
    return EncoderDecoderModel(options)


@pytest.mark.parametrize("family", tiny_language_models.ENCODER_DECODERS)
def test_losses_and_gradients_are_those_of_transformers(
    family: str, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what the models do around their output layer: T5 scales states, and BART adds a bias."""
    model = load(models, family)
    source, labels = torch.randint(0, 255, (2, 7)), torch.randint(0, 255, (2, 5))
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    wanted = model.transformer(input_ids=source, attention_mask=mask.long(), labels=labels).loss
    wanted.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    monkeypatch.setattr(language_model, "_MAX_LOGITS", 3 * model.transformer.config.vocab_size)
    start = model.transformer.config.decoder_start_token_id
    ids = torch.cat([torch.full((2, 1), start), labels[:, :-1]], dim=1)
    states = model.encode(model.embed(source), mask)
    hidden = model.hidden_states(states, mask, ids, torch.ones_like(ids).bool())
    losses, _ = model.token_losses(hidden.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(losses.mean(), wanted, rtol=1e-4, atol=1e-5)
    losses.mean().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            model.get_parameter(name).grad, gradient, rtol=1e-3, atol=1e-5, msg=f"{family} {name}"
        )


@pytest.mark.parametrize("beams", [1, 3])
def test_generated_tokens_do_not_depend_on_the_rest_of_the_batch(beams: int, models: Path) -> None:
    decoding = GREEDY.model_copy(update={"num_beams": beams})
    model = load(models, "bart", "frozen").eval()
    sources = [torch.randint(0, 255, (length,)) for length in (9, 4)]
    index = torch.nn.utils.rnn.pad_sequence(sources, batch_first=True)
    mask = torch.arange(9) < torch.tensor([[9], [4]])
    with torch.inference_mode():
        states = model.encode(model.embed(index), mask)
        together = model.generate(states, mask, [257, 256], [257], 8, decoding)
        for row, source in enumerate(sources):
            wanted = model.transformer.generate(
                source.unsqueeze(0),
                decoder_input_ids=torch.tensor([[257, 256]]),
                decoder_start_token_id=257,
                max_new_tokens=8,
                num_beams=beams,
                eos_token_id=257,
                pad_token_id=257,
                do_sample=False,
            )[0, 2:]
            assert together[row, : len(wanted)].tolist() == wanted.tolist()
