"""What the writers of objects and arrays ask of the converter of schemas."""

from __future__ import annotations

from typing import Any

from .expr import Expr, Ref, Seq, Text
from .flat import Flat
from .keywords import Keywords
from .logic import Logic

__all__ = ["Impossible", "Writer"]


class Impossible(Exception):
    """No text is valid under a schema; the message is the reason."""


class Writer:
    """Makes rules of a grammar.

    Attributes
    ----------
    logic : Logic
    keywords : Keywords
    loose : bool
        Whether all valid texts are wanted.
    rules : dict
    """

    logic: Logic
    keywords: Keywords
    loose: bool
    rules: dict[str, Expr]

    def visit(self, schema: Any, at: str) -> Ref:
        """Return a reference to the rule of a schema; equal schemas share a rule."""
        raise NotImplementedError

    def define(self, name: str, expr: Expr) -> Ref:
        """Add a rule, under another name if this one is taken; return a reference to it."""
        raise NotImplementedError

    def common(self, name: str) -> Ref:
        """Return a reference to one of the rules that any schema may use."""
        raise NotImplementedError

    def language(
        self,
        exprs: list[tuple[Expr, bool]],
        excluded: list[str],
        low: int,
        high: int | None,
        at: str,
    ) -> Expr:
        """Return the texts that match, or do not match, expressions, and have a length."""
        raise NotImplementedError

    def strings(self, flat: Flat) -> list[tuple[Expr, bool]]:
        """Return the expressions that a string must match, or must not match."""
        raise NotImplementedError

    def called(self, name: str) -> Ref:
        """Return the same as `common`, for a rule that is not copied into its users."""
        return Ref(self.common(name).name, called=True)

    @property
    def blank(self) -> Expr:
        """The blanks between two tokens."""
        return self.common("blank")

    @property
    def comma(self) -> Expr:
        """A comma and the blanks after it."""
        return Seq((Text(","), self.blank))
