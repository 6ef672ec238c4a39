"""Grammars: the texts that a generation may produce."""

from .grammar import Constraint, Grammar

__all__ = ["Constraint", "Grammar"]
