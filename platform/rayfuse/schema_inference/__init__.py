"""Inference of a job from data as it is: kinds of columns, inputs, tasks and splits, with a reason for each."""
