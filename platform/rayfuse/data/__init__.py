"""From rows to batches: readers on fsspec URLs, splits, checks, collation with presence."""
