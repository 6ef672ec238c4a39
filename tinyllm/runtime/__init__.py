"""Running a model: sessions, prompts, and the machine."""
