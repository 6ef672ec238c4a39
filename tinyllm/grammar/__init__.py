"""Grammars: which texts a generation may write."""

from .grammar import Constraint, Grammar

__all__ = ["Constraint", "Grammar"]
