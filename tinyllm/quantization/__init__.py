"""Quantization: choosing tensor types, measuring importance, writing smaller files."""
