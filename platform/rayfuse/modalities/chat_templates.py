"""Chat templates of tokenizers, rendered around the contents of turns.

A template is rendered with a marker in the place of each content, and split there. So it needs no `{% generation %}`, a
text in a turn cannot change the frame around it, and where a reply begins and ends is known.
"""

from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

from rayfuse.errors import DataError

_MARKER = "rayfusemarker{}x"
"""Word in the place of a content; templates change white space around contents and nothing else."""
_MAX_FRAMES = 1024

Frame = tuple[str, ...]
"""Texts before, between and after the contents of turns."""


class ChatTemplate:
    """The chat template of a language model."""

    def __init__(self, tokenizer: Any, model: str) -> None:
        """Store a tokenizer with a chat template, and the name of its model."""
        self._tokenizer = tokenizer
        self._model = model
        self._cached = lru_cache(_MAX_FRAMES)(self._render)

    def frame(self, roles: Sequence[str], ask: bool = True) -> Frame:
        """Return the texts around the contents of turns with these roles; with `ask`, up to where a reply begins.

        Raises DataError if the template does not take them.
        """
        return self._cached(tuple(roles), ask)

    def first_rejected(self, roles: Sequence[str]) -> int:
        """Return the index of the turn because of which the template does not take turns with these roles."""
        low, high = 0, len(roles) - 1
        while low < high:
            middle = (low + high + 1) // 2
            try:
                self._apply(roles[:middle], ask=False)
                low = middle
            except DataError:
                high = middle - 1
        return low

    @cached_property
    def _takes_parts(self) -> bool:
        """True if contents are lists of parts, as in most vision–language models, instead of texts."""
        try:
            return _MARKER not in self._render_template(["user"], [_MARKER], ask=False)
        except Exception:  # noqa: BLE001 - templates raise errors of many kinds
            return True

    def _render(self, roles: tuple[str, ...], ask: bool) -> Frame:
        rest = self._apply(roles, ask)
        texts = []
        for number in range(len(roles)):
            text, found, rest = rest.partition(_MARKER.format(number))
            if not found:
                raise DataError(
                    f"{self._model}: its chat template leaves out turn {number}, of the role {roles[number]}; correct "
                    "chat_template.jinja"
                )
            texts.append(text)
        return (*texts, rest)

    def _apply(self, roles: Sequence[str], ask: bool) -> str:
        """Render turns with markers. Raises DataError if the template raises."""
        contents: list[Any] = [_MARKER.format(number) for number in range(len(roles))]
        if self._takes_parts:
            contents = [[{"type": "text", "text": one}] for one in contents]
        try:
            return self._render_template(roles, contents, ask)
        except Exception as error:
            raise DataError(
                f"{self._model}: its chat template cannot be rendered: {type(error).__name__}: {error}; "
                "correct chat_template.jinja, or remove `system`"
            ) from error

    def _render_template(self, roles: Sequence[str], contents: Sequence[Any], ask: bool) -> str:
        turns = zip(roles, contents, strict=True)
        text: str = self._tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in turns],
            tokenize=False,
            add_generation_prompt=ask,
            enable_thinking=False,
        )
        return text
