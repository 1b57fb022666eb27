"""Speech synthesis: texts to phonemes, phonemes to samples by a VITS voice in ONNX, samples to files."""
