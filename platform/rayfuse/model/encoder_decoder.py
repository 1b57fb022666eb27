"""Encoder–decoder language models from transformers: a source for the encoder, a reply in the decoder."""

from collections.abc import Sequence
from typing import Any

import torch

from rayfuse.model.language_model import LanguageModel
from rayfuse.spec.tasks.generation import DecodingConfig

_SCALED_OUTPUTS = ("umt5", "switch_transformers")
"""Models that always scale the decoder's states before their output layer; others of T5's kin have a setting for it."""


class EncoderDecoderModel(LanguageModel):
    """A language model whose encoder reads the prompt and whose decoder writes the reply."""

    auto_class = "AutoModelForSeq2SeqLM"

    def encode(self, embeddings: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the encoder's states, float (batch, tokens, width), of prompts padded on the right.

        embeddings: float (batch, tokens, width); mask: bool (batch, tokens).
        """
        encoder = self.transformer.get_encoder()
        found: torch.Tensor = encoder(inputs_embeds=embeddings, attention_mask=mask.long()).last_hidden_state
        return found

    def hidden_states(
        self, states: torch.Tensor, states_mask: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Return the decoder's last hidden states, float (batch, tokens, width), of tokens padded on the right.

        states: the encoder's states, float (batch, source tokens, width), and their mask, bool (batch, source tokens);
        ids: int64 (batch, tokens), and their mask, bool (batch, tokens).
        """
        found: torch.Tensor = self.transformer.get_decoder()(
            input_ids=ids,
            attention_mask=mask.long(),
            use_cache=False,
            **self._cross_attention(states, states_mask),
        ).last_hidden_state
        return found * self._output_scale

    def generate(
        self,
        states: torch.Tensor,
        states_mask: torch.Tensor,
        prompt: Sequence[int],
        stop_ids: Sequence[int],
        max_tokens: int,
        decoding: DecodingConfig,
    ) -> torch.Tensor:
        """Generate up to `max_tokens` tokens after the tokens of `prompt` in the decoder, int64 (batch, tokens).

        A reply ends at the first of `stop_ids`, and is padded with it. states: the encoder's states, float (batch,
        source tokens, width), and their mask, bool (batch, source tokens). With weights sharded over ranks, all of them
        generate until the longest reply of any rank has ended.
        """
        from transformers.modeling_outputs import BaseModelOutput

        start = torch.tensor([list(prompt)], device=states.device).expand(len(states), -1)
        inputs = {
            "encoder_outputs": BaseModelOutput(last_hidden_state=states),
            "attention_mask": states_mask.long(),
            "decoder_input_ids": start,
            "decoder_start_token_id": prompt[0],
        }
        return self._generate(inputs, stop_ids, max_tokens, decoding)[:, len(prompt) :]

    @property
    def _output_scale(self) -> float:
        config = self.transformer.config
        scaled = getattr(config, "scale_decoder_outputs", config.model_type in _SCALED_OUTPUTS)
        return float(config.d_model**-0.5) if scaled else 1.0

    def _cross_attention(self, states: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask.long()}

    def _finish_logits(self, logits: torch.Tensor) -> torch.Tensor:
        bias = getattr(self.transformer, "final_logits_bias", None)  # of BART and its kin
        return super()._finish_logits(logits if bias is None else logits + bias)


class SpeechDecoder(EncoderDecoderModel):
    """The decoder of a Whisper model; its encoder is that of an input of the job."""

    auto_class = "AutoModelForSpeechSeq2Seq"

    def _load(self) -> Any:
        loaded = super()._load()
        loaded.model.encoder = None
        return loaded

    @staticmethod
    def encoder_of(whole: Any) -> Any:
        """Return the part of a complete model that is the encoder of an input."""
        return whole.get_encoder()

    def _cross_attention(self, states: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
        """Return the arguments for states that all count: the encoder attends to the silence after a clip, too."""
        return {"encoder_hidden_states": states}
