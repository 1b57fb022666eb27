"""Evaluation of trained models, and plots of training, evaluation and attributions."""
