"""Inner values: their names, where they are kept, how they are changed and saved."""
