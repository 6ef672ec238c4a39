"""File formats on disk."""
