"""The demo's data and models, generated from installed packages, without downloads."""
