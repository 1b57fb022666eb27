"""Assignment of cache slots to requests, and reuse of what freed slots still hold."""

from collections.abc import Hashable
from itertools import takewhile

from rayfuse.decoding.sequence import ActiveSequence
from rayfuse.decoding.slot_cache import SlotCache

_Resident = tuple[str | None, list[Hashable]]


class SlotTable:
    """Assigns slots so that forward passes work on contiguous ranges of them.

    Slots 0 to `decoding` hold requests that generate, those behind them up to `len(sequences)` requests whose prompt is
    not complete, and the rest is free. Where one ends, the last of its range takes its slot.
    """

    def __init__(self, caches: list[SlotCache], *, reuse: bool) -> None:
        self.sequences: list[ActiveSequence] = []
        self.decoding = 0
        self._caches = caches
        self._reuse = reuse
        self._residents: list[_Resident] = [(None, [])] * caches[0].slots
        self._used = list(range(caches[0].slots))
        """For each slot, a number that is higher the later its content was last of use."""

    @property
    def free(self) -> int:
        """Number of free slots."""
        return self._caches[0].slots - len(self.sequences)

    def add(self, sequence: ActiveSequence) -> None:
        """Give a request a slot, and in it the longest beginning of its prompt that some slot holds."""
        slot = len(self.sequences)
        source, length = self._longest_prefix(sequence)
        if source != slot or length < len(self._residents[slot][1]):
            self._preserve(slot, source)
        if length and source != slot:
            self._copy(source, slot, length)
        sequence.length = sequence.reused = length
        self._used[source] = self._used[slot] = max(self._used) + 1
        self.sequences.append(sequence)

    def promote(self, sequence: ActiveSequence) -> None:
        """Move a request with a complete prompt to those that generate."""
        slot, target = self.sequences.index(sequence), self.decoding
        if slot != target:
            other = self.sequences[target]
            for cache in self._caches:
                cache.swap(slot, target, max(sequence.length, other.length))
            self.sequences[slot], self.sequences[target] = other, sequence
        self.decoding += 1

    def remove(self, sequence: ActiveSequence) -> None:
        """Free the slot of a request."""
        slot = self.sequences.index(sequence)
        last = len(self.sequences) - 1
        self._keep(slot)
        if slot < self.decoding:
            self.decoding -= 1
            self._move(self.decoding, slot)
            slot = self.decoding
        self._move(last, slot)
        self.sequences.pop()

    def erase(self, sequence: ActiveSequence) -> None:
        """Set the slot of a request to zero, so that nothing is taken from it."""
        for cache in self._caches:
            cache.zero(self.sequences.index(sequence))
        sequence.length = 0

    def clear(self) -> None:
        """Forget what the slots hold."""
        self.sequences = []
        self.decoding = 0
        self._residents = [(None, [])] * len(self._residents)

    def _preserve(self, slot: int, source: int) -> None:
        """Copy what a free slot holds over the free slot that has been of no use for the longest time."""
        others = [other for other in range(slot + 1, self._caches[0].slots) if other != source]
        if not self._reuse or not others:
            return
        oldest = min(others, key=lambda other: self._used[other])
        if self._used[oldest] < self._used[slot]:
            self._copy(slot, oldest, len(self._residents[slot][1]))
            self._residents[oldest] = self._residents[slot]
            self._used[oldest] = self._used[slot]

    def _move(self, source: int, target: int) -> None:
        if source == target:
            return
        sequence = self.sequences[source]
        self._copy(source, target, sequence.length)
        self.sequences[target] = sequence
        self._residents[source] = self._held_by(sequence)
        self._used[target] = self._used[source]

    def _keep(self, slot: int) -> None:
        self._residents[slot] = self._held_by(self.sequences[slot])

    def _copy(self, source: int, target: int, length: int) -> None:
        for cache in self._caches:
            cache.copy(source, target, length)

    def _held_by(self, sequence: ActiveSequence) -> _Resident:
        return sequence.request.adapter, sequence.keys[: sequence.length]

    def _longest_prefix(self, sequence: ActiveSequence) -> tuple[int, int]:
        """Return the slot with the longest common beginning and its length; the last position is never reused."""
        if not self._reuse:
            return 0, 0
        wanted = sequence.prompt.keys[:-1]
        best = (0, 0)
        for slot, resident in enumerate(self._residents):
            adapter, held = self._held_by(self.sequences[slot]) if slot < len(self.sequences) else resident
            if adapter != sequence.request.adapter:
                continue
            pairs = zip(wanted, held, strict=False)
            length = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            best = max(best, (slot, length), key=lambda found: found[1])
        return best
