"""Encoders, alignments, fusions, task heads, and the fused model that combines them."""
