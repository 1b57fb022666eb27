"""Models behind HTTP: the protocol, the endpoint on Ray Serve, its deployment, and its client."""
