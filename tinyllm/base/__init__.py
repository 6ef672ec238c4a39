"""Basics that all other packages use: argument checks, numeric functions, samples, progress."""
