"""Data: readers, row store, validation, preprocessing, and batches."""
