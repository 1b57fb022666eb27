"""Reading of the states of an input's encoder by the decoder of a speech model."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from rayfuse.decoding.constraint import EmptyReply
from rayfuse.decoding.request import DecodeRequest
from rayfuse.decoding.time_stamps import TimeStampRules
from rayfuse.errors import InvalidInputError
from rayfuse.modalities.dialogues import Dialogue
from rayfuse.modalities.transcripts import TranscriptRenderer
from rayfuse.model.encoder_decoder import SpeechDecoder
from rayfuse.model.tasks.prompt_reading import EncoderDecoderReading
from rayfuse.model.tasks.text_decoding import PromptInputs, TimeStamps
from rayfuse.model.tokens import FusedState, Tokens


class TranscriptReading(EncoderDecoderReading):
    """Reading of a speech model: its decoder, behind the encoder of an input.

    States of a clip that is absent are 0 in training; its transcript is empty.
    """

    model_class = SpeechDecoder
    _renderer: TranscriptRenderer

    @property
    def time_stamps(self) -> TimeStamps:
        return TimeStamps(self._with_time_stamps, self._renderer.split)

    def inputs(self, fused: FusedState) -> list[PromptInputs]:
        states, mask = self._encode(fused)
        name = self._renderer.reads
        return [
            PromptInputs({}, {name: one} if present else {})
            for one, present in zip(states, mask.any(dim=1).tolist(), strict=True)
        ]

    def request(self, inputs: PromptInputs, dialogue: Dialogue | None = None) -> DecodeRequest:
        if dialogue is not None and (dialogue.turns or dialogue.text or dialogue.system):
            raise InvalidInputError(
                "this model transcribes a sound and reads no text; send the sound alone", "messages"
            )
        states = inputs.soft_tokens.get(self._renderer.reads)
        if states is not None:
            return DecodeRequest(self._renderer.decoder_prompt, encoder_states=states)
        silence = torch.zeros(1, self._lm.width)
        constraint = EmptyReply(self._renderer.end_id)
        return DecodeRequest(self._renderer.decoder_prompt, encoder_states=silence, constraint=constraint)

    def continuation(self, ids: Sequence[int]) -> DecodeRequest:
        raise InvalidInputError("this model transcribes sounds; send one to /chat/completions", "prompt")

    def generate(self, fused: FusedState, stop_ids: Sequence[int]) -> torch.Tensor:
        present = self._encode(fused)[1].any(dim=1)
        return torch.where(present.unsqueeze(1), super().generate(fused, stop_ids), stop_ids[0])

    def _with_time_stamps(self, request: DecodeRequest) -> DecodeRequest:
        if request.constraint is not None:
            return request
        rules = TimeStampRules(self._renderer.first_time_stamp, self._renderer.end_id)
        return replace(request, prompt=self._renderer.decoder_prompt[:-1], constraint=rules)

    def _encode(self, fused: FusedState) -> Tokens:
        return fused["encoded"][self._renderer.reads]

    def _check_requests(self, requests: Sequence[DecodeRequest]) -> None:
        self._renderer.check_target(self._task.max_tokens)
