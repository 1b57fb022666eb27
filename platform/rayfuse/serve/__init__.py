"""Models behind HTTP: the protocol, the endpoint on Ray Serve, and how it is brought up and asked."""
