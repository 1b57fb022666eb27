"""Text generation with continuous batching over cache slots, for language models of transformers."""
