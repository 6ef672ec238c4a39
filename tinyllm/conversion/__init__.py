"""Conversion of models between formats: Hugging Face checkpoints to GGUF."""
