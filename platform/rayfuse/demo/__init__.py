"""The demo's data and models, made on the spot from installed packages: nothing is downloaded."""
