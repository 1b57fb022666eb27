"""A user's package with one custom part of each family, one file each (see docs/extending.md)."""
