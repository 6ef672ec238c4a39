"""GGUF files as Hugging Face checkpoints: `table` has a row per architecture."""
