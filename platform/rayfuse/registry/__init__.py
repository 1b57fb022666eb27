"""MLflow: tracking of runs, and registration, promotion and rollback of models."""
