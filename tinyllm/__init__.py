"""Open a GGUF language model, run it on the CPU, and read every number inside as NumPy."""
