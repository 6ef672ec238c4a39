"""Scores of texts and of models."""
