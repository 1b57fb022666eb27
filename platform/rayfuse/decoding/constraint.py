"""The interface by which a grammar restricts the tokens of a reply, and the constraint of an empty one."""

from typing import Protocol

import torch


class TokenConstraint(Protocol):
    """Restricts the tokens of one reply, step by step."""

    def check_budget(self, max_tokens: int) -> None:
        """Raise InvalidInputError if no valid reply has at most `max_tokens` tokens."""
        ...

    def allowed(self, logits: torch.Tensor) -> torch.Tensor:
        """Return which tokens may come next: booleans of the shape of the logits (vocabulary,), at least one of them true."""
        ...

    def advance(self, token_id: int, remaining: int) -> int:
        """Append an allowed token and return it.

        `remaining` is how many tokens may follow. If the reply could not be finished with those, another token is
        appended and returned instead, from which it can.
        """
        ...

    @property
    def complete(self) -> bool:
        """Return True if the reply is valid as it is, though more may follow."""
        ...

    @property
    def finished(self) -> bool:
        """Return True if the reply is complete and nothing can follow but an end token."""
        ...


class EmptyReply(TokenConstraint):
    """Restricts a reply to its end token."""

    complete = finished = False

    def __init__(self, end_token: int) -> None:
        self._end_token = end_token

    def check_budget(self, max_tokens: int) -> None:
        """Do nothing: every reply has room for its end token."""

    def allowed(self, logits: torch.Tensor) -> torch.Tensor:
        return torch.arange(len(logits)) == self._end_token

    def advance(self, token_id: int, remaining: int) -> int:
        return token_id
