"""What a job needs before anything of it starts: memory of each worker, the layout that fits, and time.

It lies below `train` and not in `cluster`, which stays free of torch: here the model and its step are run on fake
tensors, which have shapes and no storage.
"""
