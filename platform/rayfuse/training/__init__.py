"""Fine-tune a job's model with Ray Train and DeepSpeed."""
