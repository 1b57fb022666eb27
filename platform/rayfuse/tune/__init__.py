"""Sweeps: from a space of jobs to trials on Ray Tune, a leaderboard and a winner."""
