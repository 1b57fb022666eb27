"""Hyperparameter search: trials of a job on Ray Tune, a leaderboard, and the best job."""
