"""Inner values of a run: their names, memory, edits and files."""
