"""MLflow: where runs are logged, models are registered, judged, promoted and rolled back."""
