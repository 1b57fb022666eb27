"""Replies that follow a JSON Schema and are never cut off, with the grammar library llguidance.

llguidance was chosen over xgrammar: it needs neither torch nor Triton, imports in a quarter of a second, reports the
keywords that it does not implement, and its matchers are copied in a microsecond, which the search for the shortest
completion relies on.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from heapq import heappop, heappush
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer

from rayfuse.decoding.constraint import TokenConstraint
from rayfuse.errors import InvalidInputError, SpecError
from rayfuse.modalities.json_grammar import PARAMETER, byte_matcher, schema_grammar

_QUOTE = ord('"')
_MANY_BYTES = 64
"""More allowed bytes than this are the inside of a string."""
_MAX_WORK = 1_500_000
"""Bytes of all extended texts together, after which a search ends: a second of a processor at most."""
_MIN_WORK = 100
"""Bytes that extending a short text counts for."""
_ITEM_REWARD = 10_000
_SAME_PLACE = 2
"""Unfinished texts at what seems to be the same place of the schema that the search follows."""
_LOCAL_WORK = 50_000
"""The same for a search of the end of a value."""
_MAX_TAILS = 4
_BOUNDARY = re.compile(rb'["{}\[\],]')
_STRUCTURAL = re.compile(rb"[{}\[\],]")


class GrammarVocabulary:
    """The tokens of a model as bytes, for its grammars. Building it takes up to a second: keep one per model.

    Raises SpecError for a tokenizer that is not one of the library tokenizers.
    """

    def __init__(self, tokenizer: Any, end_tokens: Iterable[int]) -> None:
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise SpecError(
                f"{type(tokenizer).__name__} has no tokenizer.json, which a JSON schema needs; save the tokenizer with "
                "the library tokenizers"
            )
        self.end_tokens = frozenset(end_tokens)
        if not self.end_tokens:
            raise SpecError(
                "the model has no end token, which a JSON schema needs; set eos_token_id in its config"
            )
        self.tokens = from_tokenizer(tokenizer, eos_token=sorted(self.end_tokens))
        self.token_bytes = [self.tokens.decode_bytes([token]) for token in range(self.tokens.vocab_size)]
        special = {token for token in range(self.tokens.vocab_size) if self.tokens.is_special_token(token)}
        named = {text: token for token, text in enumerate(self.token_bytes) if text and token not in special}
        self._ids = named
        self._longest = max(map(len, named), default=0)

    def json_schema(
        self, schema: Mapping[str, Any], separators: tuple[str, str] = (", ", ": ")
    ) -> "JsonSchemaConstraint":
        """Return the constraint of one reply. Raises InvalidInputError for an invalid or unsupported schema.

        `separators`: those of items and keys, by default as `json.dumps` writes them; other whitespace is not allowed.
        """
        return JsonSchemaConstraint(self, schema_grammar(schema, separators))

    def split(self, text: bytes) -> list[int]:
        """Return tokens whose bytes are `text`, the longest first, which may differ from the tokenizer's own."""
        tokens = []
        while text:
            sizes = range(min(self._longest, len(text)), 0, -1)
            size = next((size for size in sizes if text[:size] in self._ids), None)
            if size is None:
                raise SpecError(
                    f"the tokenizer has no token for the byte {text[0]:#04x}, which a JSON schema needs"
                )
            tokens.append(self._ids[text[:size]])
            text = text[size:]
        return tokens


class JsonSchemaConstraint(TokenConstraint):
    """Restricts one reply to texts that follow a JSON Schema and can be finished within its tokens."""

    def __init__(self, vocabulary: GrammarVocabulary, grammar: str) -> None:
        self._vocabulary = vocabulary
        self._matcher = LLMatcher(vocabulary.tokens, grammar, log_level=0)
        self._bytes = byte_matcher(grammar)
        self._plan = shortest_completion(self._bytes)
        """A text that finishes the reply, as short as was found; None if there is none."""

    def copy(self) -> "JsonSchemaConstraint":
        """Return a constraint of another reply that is where this one is; far faster than a new one."""
        copied = copy(self)
        copied._matcher, copied._bytes = self._matcher.deep_copy(), self._bytes.deep_copy()
        return copied

    @property
    def complete(self) -> bool:
        return bool(self._matcher.is_accepting())

    @property
    def finished(self) -> bool:
        return bool(self._matcher.is_stopped())

    @property
    def min_tokens(self) -> int | None:
        """Number of tokens that finish the reply from here; None if no way was found."""
        return None if self._plan is None else len(self._vocabulary.split(self._plan))

    def check_budget(self, max_tokens: int) -> None:
        needed = self.min_tokens
        if needed is None:
            raise InvalidInputError(
                "no text that follows the JSON schema was found; simplify the schema", PARAMETER
            )
        if needed > max_tokens:
            raise InvalidInputError(
                f"{max_tokens} tokens are too few: the shortest reply that follows the JSON schema has {needed}; raise "
                "max_tokens or shorten the schema",
                "max_tokens",
            )

    def allowed(self, logits: torch.Tensor) -> torch.Tensor:
        vocab_size = len(logits)
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        known = np.unpackbits(bits, bitorder="little")[: min(vocab_size, self._vocabulary.tokens.vocab_size)]
        allowed = torch.zeros(vocab_size, dtype=torch.bool)
        allowed[: len(known)] = torch.from_numpy(known.astype(bool))
        if self._matcher.is_error() or not bool(allowed.any()):
            raise InvalidInputError(f"the JSON schema is too complex: {self._matcher.get_error()}", PARAMETER)
        return allowed

    def advance(self, token_id: int, remaining: int) -> int:
        assert self._plan is not None, "check_budget comes first"
        if token_id not in self._vocabulary.end_tokens:
            following = self._bytes.deep_copy()
            following.consume_tokens(list(self._vocabulary.token_bytes[token_id]))
            plan = self._plan_behind(following, self._vocabulary.token_bytes[token_id], remaining)
            if plan is None:
                token_id, following, plan = self._follow_plan(self._plan)
            self._bytes, self._plan = following, plan
        self._matcher.consume_token(token_id)
        return token_id

    def _plan_behind(self, state: Any, text: bytes, remaining: int) -> bytes | None:
        """Return a text that finishes `state`, which follows the current one by `text`, in the remaining tokens."""
        assert self._plan is not None
        if self._plan.startswith(text) and self._fits(rest := self._plan[len(text) :], remaining):
            return rest
        if not self._fits(self._plan, remaining):
            return None  # no token to spare: the plan is followed
        # Mostly the end of the value is enough, and what the plan has behind it: that saves the long search.
        plan = _search(state, tails=_tails(self._plan), max_work=_LOCAL_WORK) or shortest_completion(state)
        return plan if plan is not None and self._fits(plan, remaining) else None

    def _follow_plan(self, plan: bytes) -> tuple[int, Any, bytes]:
        """Return the first token of a plan, the state behind it, and the rest; an end token where nothing is left."""
        state = self._bytes.deep_copy()
        if not plan:
            return min(self._vocabulary.end_tokens), state, plan
        token_id = self._vocabulary.split(plan)[0]
        text = self._vocabulary.token_bytes[token_id]
        state.consume_tokens(list(text))
        return token_id, state, plan[len(text) :]

    def _fits(self, plan: bytes, remaining: int) -> bool:
        return len(self._vocabulary.split(plan)) <= remaining


def shortest_completion(state: Any) -> bytes | None:
    """Return a text that finishes a matcher of bytes, nearly the shortest; None if none was found in a bounded search.

    If the texts that are extended the shortest first do not lead to an end, a second search prefers those that have
    completed more items, which may end in a longer text.
    """
    found = _search(state, item_reward=0)
    return _search(state, item_reward=_ITEM_REWARD) if found is None else found


def _search(
    state: Any, item_reward: int = 0, tails: Sequence[bytes] = (), max_work: int = _MAX_WORK
) -> bytes | None:
    """Extend texts the shortest first (Dijkstra, 1959), until one is complete, or is so with one of `tails`.

    Each completed item makes a text count as shorter. Of texts with equally many structural characters, equally many
    bytes behind them and the same bytes allowed next, only the first are followed: they mostly stand at the same place
    of the schema.
    """
    order = count()
    waiting = [(0, next(order), b"", state)]
    seen: Counter[tuple[int, int, bytes]] = Counter()
    work = 0
    while waiting and work < max_work:
        _, _, text, state = heappop(waiting)
        work += len(text) + _MIN_WORK
        if state.is_accepting():
            return text
        for tail in tails:
            ended = state.deep_copy()
            if ended.consume_tokens(list(tail)) and ended.is_accepting():
                return text + tail
        forced = state.compute_ff_bytes()
        mask = b"" if forced else state.compute_bitmask()
        place = (*_structure(text), mask)
        seen[place] += 1
        if seen[place] > _SAME_PLACE:
            continue
        for addition in [forced] if forced else _candidates(mask):
            following, longer = state.deep_copy(), text + addition
            if following.consume_tokens(list(addition)):
                heappush(
                    waiting, (len(longer) - item_reward * longer.count(b","), next(order), longer, following)
                )
    return None


def _tails(plan: bytes) -> list[bytes]:
    """Return the ends of a plan from its first quotes and structural characters, and the plan itself."""
    starts = [match.start() for match in islice(_BOUNDARY.finditer(plan), _MAX_TAILS)]
    return [plan[start:] for start in dict.fromkeys([0, *starts])]


def _structure(text: bytes) -> tuple[int, int]:
    """Return the number of structural characters in a text, and of the bytes behind the last of them."""
    parts = _STRUCTURAL.split(text)
    return len(parts) - 1, len(parts[-1])


def _candidates(mask: bytes) -> list[bytes]:
    """Return the bytes that the search tries, of those that a mask allows.

    Where an object, an array or a value may end, nothing else leads to a shorter text.
    """
    bits = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), bitorder="little")[:256]
    allowed = np.flatnonzero(bits).tolist()
    if len(allowed) > _MANY_BYTES:
        allowed = [_QUOTE] if _QUOTE in allowed else _representatives(allowed)
    else:
        allowed = next(([end] for end in b"}]," if end in allowed), allowed)
    return [bytes([byte]) for byte in allowed]


def _representatives(allowed: Sequence[int]) -> list[int]:
    common = [byte for byte in b"a0A-.@:/ " if byte in allowed]
    return common or [allowed[0]]
