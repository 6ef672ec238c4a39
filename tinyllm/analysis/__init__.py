"""Interpretation of inner values: logit lens, attribution, circuits, heads and patch sweeps."""
