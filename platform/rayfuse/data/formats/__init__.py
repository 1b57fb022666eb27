"""Readers of rows, one module per family of formats; `rayfuse.data.readers.READERS` lists them by suffix."""
