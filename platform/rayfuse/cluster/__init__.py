"""Ray clusters: a local one, and submission to Kubernetes and to running clusters."""
