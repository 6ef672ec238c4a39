"""Architectures: a model's configuration, and the plan of steps that is built from it."""
