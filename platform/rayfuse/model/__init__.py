"""Encoders, alignment, fusion and tasks, and the fused model that they make."""
