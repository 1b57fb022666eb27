"""The spec files that users write, as pydantic models. Imports neither torch, ray nor mlflow."""
