"""Resource estimation: memory of each worker, the smallest layout that fits, and training time, before a job starts.

The model and its training step run on fake tensors, which have shapes and no storage.
"""
