"""Reading of a causal language model with gated layers that attend to the inputs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from rayfuse.decoding.request import DecodeRequest
from rayfuse.modalities.dialogues import Dialogue
from rayfuse.modalities.prompts import PromptRenderer
from rayfuse.model.gated_attention import GatedCrossAttention
from rayfuse.model.language_model import CausalModel
from rayfuse.model.reply_grammar import ReplyGrammar
from rayfuse.model.tasks.prompt_reading import CausalReading, LearnedReply
from rayfuse.model.tasks.text_decoding import PromptInputs
from rayfuse.model.tokens import FusedState, Tokens
from rayfuse.spec.tasks import GenerationTaskConfig
from rayfuse.spec.tasks.injection import CrossAttentionInjection


class CrossAttentionReading(CausalReading):
    """Reading of a causal language model whose prompts have texts only, and whose gated layers attend to the inputs."""

    def __init__(
        self,
        task: GenerationTaskConfig,
        lm: CausalModel,
        renderer: PromptRenderer,
        bridge: GatedCrossAttention,
        grammar: ReplyGrammar,
    ) -> None:
        super().__init__(task, lm, renderer, None, grammar)
        self._attention = bridge

    def reply_states(
        self, fused: FusedState, replies: Sequence[Sequence[int]], num_earlier: Sequence[int]
    ) -> tuple[torch.Tensor, list[LearnedReply]]:
        with self._attend(fused):
            return super().reply_states(fused, replies, num_earlier)

    @contextmanager
    def reference(self) -> Iterator[None]:
        with super().reference(), self._attention.switched_off():
            yield

    def inputs(self, fused: FusedState) -> list[PromptInputs]:
        tokens, mask = self._attention.tokens(self._aligned(fused))
        present = mask.any(dim=1).tolist()
        return [
            replace(one, attended=tokens[row][mask[row]] if present[row] else None)
            for row, one in enumerate(super().inputs(fused))
        ]

    def request(self, inputs: PromptInputs, dialogue: Dialogue | None = None) -> DecodeRequest:
        return replace(super().request(inputs, dialogue), encoder_states=inputs.attended)

    def generate(self, fused: FusedState, stop_ids: Sequence[int]) -> torch.Tensor:
        with self._attend(fused):
            return super().generate(fused, stop_ids)

    @contextmanager
    def _attend(self, fused: FusedState) -> Iterator[None]:
        with self._attention.attend(self._attention.memory(self._aligned(fused))):
            yield

    def _aligned(self, fused: FusedState) -> list[Tokens]:
        """Return the tokens of each attended input, and the fused vector of samples that have any input."""
        aligned = [fused["inputs"][name] for name in self._renderer.attended_inputs]
        inject = self._task.inject
        if isinstance(inject, CrossAttentionInjection) and inject.fused:
            present = torch.cat([mask for _, mask in fused["inputs"].values()], dim=1).any(
                dim=1, keepdim=True
            )
            aligned.append((fused["vector"].unsqueeze(1), present))
        return aligned
