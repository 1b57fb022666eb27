"""Presets: options that fit a job's data, for the keys that its spec leaves out."""

from rayfuse.presets.apply import Preset, apply_preset, choose_preset
from rayfuse.presets.facts import Facts, InputFacts, gather_facts

__all__ = ["Facts", "InputFacts", "Preset", "apply_preset", "choose_preset", "gather_facts"]
