"""Check that a model computes the same for rows of different lengths in one batch as for each alone."""

import torch
from torch import nn

from rayfuse.decoding.input_memory import InputAttention
from rayfuse.decoding.model_runner import Batch, CrossCache, ModelRunner
from rayfuse.decoding.slot_cache import SlotCache, Window
from rayfuse.errors import SpecError

_LENGTHS = (3, 2)
_TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-6}
_LOW_PRECISION_TOLERANCE = 0.05


def build_runner(model: nn.Module, inputs: InputAttention | None = None) -> ModelRunner:
    """Return the runner of a model in evaluation mode. Raises SpecError if it cannot batch requests of different lengths."""
    was_training = model.training
    model.eval()
    runner = ModelRunner(model, inputs)
    check_ragged_rows(runner)
    model.train(was_training)
    return runner


def check_ragged_rows(runner: ModelRunner) -> None:
    """Raise SpecError if a token's logits depend on the length of another row in its batch.

    Runs two rows of 3 and 2 tokens alone and then their next tokens together, on a separate cache.
    """
    cache = SlotCache(runner.layers, 2, max(_LENGTHS) + 1)
    cross = CrossCache(runner.cross_layers, 2, 1) if runner.is_encoder_decoder else None
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(1, runner.hidden_size, generator=generator).to(runner.device)
    tokens = torch.randint(runner.vocab_size, (2, 1), generator=generator)
    alone = []
    for row, length in enumerate(_LENGTHS):
        prompt = torch.randint(runner.vocab_size, (1, length), generator=generator)
        _append(runner, cache, cross, row, (0,), prompt, states)
        alone.append(_append(runner, cache, cross, row, (length,), tokens[[row]]))
    together = _append(runner, cache, cross, 0, _LENGTHS, tokens)
    expected = torch.cat(alone).float()
    difference = float((together.float() - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
    exact = not torch.is_autocast_enabled(runner.device.type)
    tolerances = _TOLERANCES if exact else {}
    if not difference < tolerances.get(together.dtype, _LOW_PRECISION_TOLERANCE):
        raise SpecError(
            f"{type(runner.base).__name__} cannot decode requests of different lengths in one batch: its logits change "
            f"by {difference:.1%}; choose a language model such as Llama, Qwen, Gemma, GPT-2, T5, BART or Whisper"
        )


def _append(
    runner: ModelRunner,
    cache: SlotCache,
    cross: CrossCache | None,
    first: int,
    starts: tuple[int, ...],
    tokens: torch.Tensor,
    states: torch.Tensor | None = None,
) -> torch.Tensor:
    queries = tokens.shape[1]
    positions = (torch.tensor(starts)[:, None] + torch.arange(queries)).to(runner.device)
    window = Window(first, starts, positions, int(positions.max()) + 1)
    batch = Batch(window, tokens.to(runner.device), None, (queries - 1,) * len(starts))
    if cross is not None and states is not None:
        return runner.start(cache, batch, cross, states)
    return runner.run(cache, batch, cross)
