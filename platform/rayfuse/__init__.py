"""Rayfuse: fine-tune, search, register and serve models that read several kinds of input, on Ray."""

__version__ = "0.1.0"
