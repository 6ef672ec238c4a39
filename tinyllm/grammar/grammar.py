"""Grammars, and the tokens of a vocabulary that they allow."""

from __future__ import annotations

import functools
import json
import threading
import weakref
from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..errors import UnsupportedError
from ..tokenizer import Tokenizer
from . import gbnf, regex, schema
from .automaton import accepts, advance, build
from .expr import Expr, Rules, check, prune, reachable, to_gbnf

__all__ = ["Constraint", "Grammar"]

#: A constraint with more cached states than this is not reused for the next text.
_MANY_STATES = 500_000


class Grammar:
    """A set of allowed texts, from GBNF, a JSON schema or a regular expression.

    Immutable and safe to share between threads. Left recursion, endless recursion and grammars
    that are too large raise ValueError; the message names the rule.

    Parameters
    ----------
    rules : mapping of str to Expr
        See `tinyllm.grammar.expr`; `gbnf`, `json_schema` and `regex` create them.
    root : str
        The name of the rule for the whole text.

    Examples
    --------
    >>> import tinyllm as tl
    >>> grammar = tl.Grammar.regex("(red|green)( light)?")
    >>> grammar.accepts("green light"), grammar.accepts("blue")
    (True, False)
    >>> print(grammar)
    root ::= ("red" | "green") " light"?
    """

    def __init__(self, rules: Rules, root: str = "root") -> None:
        try:
            self._all_rules = check(rules, root)
            self._program = build(self._all_rules)
        except RecursionError:
            raise ValueError("the grammar is nested too deeply") from None
        self._prepare()

    def _prepare(self) -> None:
        self._constraints: weakref.WeakKeyDictionary[Tokenizer, Constraint]
        self._constraints = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    @functools.cached_property
    def rules(self) -> dict[str, Expr]:
        """The rules, the root first."""
        ends = self._program.ends
        rules = self._all_rules if ends is None else prune(self._all_rules, ends)
        return reachable(rules, next(iter(rules)))

    @classmethod
    def gbnf(cls, text: str) -> Grammar:
        r"""Return a grammar given in GBNF, llama.cpp's notation.

        Parameters
        ----------
        text : str
            Rules ``name ::= ...``; ``root`` is the start. Rules consist of texts ``"..."``, sets
            ``[a-z]`` and ``[^...]``, ``.``, groups, ``|``, ``* + ? {m} {m,} {m,n}``, comments
            ``#``, and tokens: ``<think>`` is the token of this text in the vocabulary, ``<[7]>``
            the token 7, ``!<think>`` any other token. See llama.cpp's ``grammars/README.md``.

        Returns
        -------
        Grammar

        Raises
        ------
        ValueError
            If the text is not GBNF (the message names line and column), or the grammar cannot
            be used.

        Examples
        --------
        >>> import tinyllm as tl
        >>> grammar = tl.Grammar.gbnf('root ::= "[" (digit ("," digit)*)? "]"\ndigit ::= [0-9]')
        >>> grammar.accepts("[1,2]"), grammar.accepts("[1,]")
        (True, False)
        """
        return cls(gbnf.parse(text))

    @classmethod
    def json_schema(
        cls,
        schema_: Any,
        *,
        ignore: Collection[str] = (),
        form: str = "compact",
    ) -> Grammar:
        """Return a grammar of JSON texts that are valid under a schema.

        Parameters
        ----------
        schema_ : dict, bool, str, bytes or class
            JSON Schema; ``docs/generation.md`` lists the keywords. A str or bytes is its JSON text.
            A class is one of Pydantic (version 2), or another with a method `model_json_schema`.
        ignore : collection of str
            Keywords to leave unchecked.
        form : "compact" or "any"
            "compact": objects have only the properties that the schema names, in its order, and
            there are few blanks. "any": all valid texts, with the exceptions in
            ``docs/generation.md``.

        Returns
        -------
        Grammar
            Every text that it accepts is valid.

        Raises
        ------
        ValueError
            If the schema is malformed, or no text is valid; the message has a JSON pointer.
        tinyllm.UnsupportedError
            If the schema has a keyword that the grammar cannot enforce.

        Examples
        --------
        >>> import tinyllm as tl
        >>> grammar = tl.Grammar.json_schema({
        ...     "type": "object",
        ...     "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 130}},
        ...     "required": ["age"],
        ... })
        >>> grammar.accepts('{"age": 42}'), grammar.accepts('{"age": 420}')
        (True, False)
        >>> tl.Grammar.json_schema('{"enum": ["a", "b"]}').accepts('"a"')
        True
        """
        rules, program = schema.convert(_schema(schema_), ignore, form)
        if program is None:
            return cls(rules)
        grammar = cls.__new__(cls)
        grammar._all_rules, grammar._program = rules, program
        grammar._prepare()
        return grammar

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        r"""Return a grammar of the texts that a regular expression matches as a whole.

        Parameters
        ----------
        pattern : str
            `tinyllm.grammar.regex` lists the supported syntax.

        Returns
        -------
        Grammar

        Raises
        ------
        ValueError
            If the pattern is malformed.
        tinyllm.UnsupportedError
            If the pattern has backreferences, or other syntax that is not supported.

        Examples
        --------
        >>> import tinyllm as tl
        >>> tl.Grammar.regex(r"\d{4}-\d\d").accepts("2024-05")
        True
        """
        return cls({"root": regex.parse(pattern)})

    def accepts(self, text: str | bytes) -> bool:
        """Return whether the grammar accepts a whole text.

        Parameters
        ----------
        text : str or bytes

        Returns
        -------
        bool

        Examples
        --------
        >>> import tinyllm as tl
        >>> tl.Grammar.regex("a+").accepts("aaa")
        True
        """
        return accepts(self._program, text)

    def constraint(self, tokenizer: Tokenizer) -> Constraint:
        """Return this grammar applied to a vocabulary; cached for each tokenizer.

        Parameters
        ----------
        tokenizer : Tokenizer

        Returns
        -------
        Constraint

        Examples
        --------
        >>> import tinyllm as tl
        >>> tokenizer = tl.load().tokenizer
        >>> constraint = tl.Grammar.regex("[0-9]+").constraint(tokenizer)
        >>> mask = constraint.mask(constraint.start())
        >>> bool(mask[tokenizer.id("7")]), bool(mask[tokenizer.id("a")])
        (True, False)
        """
        with self._lock:
            found = self._constraints.get(tokenizer)
            if found is None or found.states > _MANY_STATES:
                found = Constraint(self, tokenizer)
                self._constraints[tokenizer] = found
            return found

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the grammar without what it caches for tokenizers."""
        return {k: v for k, v in vars(self).items() if k not in ("_constraints", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._constraints = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def __copy__(self) -> Grammar:
        return self  # immutable

    def __deepcopy__(self, memo: object) -> Grammar:
        return self

    def __str__(self) -> str:
        """Return the grammar as GBNF."""
        return to_gbnf(self.rules).rstrip("\n")

    def __repr__(self) -> str:
        return f"<tinyllm.Grammar: {len(self.rules)} rules, {len(self._program.array)} states>"


_TRIES: weakref.WeakKeyDictionary[Tokenizer, _core.Trie] = weakref.WeakKeyDictionary()
_TRIES_LOCK = threading.Lock()


def _schema(given: Any) -> Any:
    """Return a JSON schema as `json.loads` would, given one in any form."""
    for method in ("model_json_schema", "json_schema"):  # Pydantic's BaseModel and TypeAdapter
        if callable(getattr(given, method, None)):
            return getattr(given, method)()
    if not isinstance(given, str | bytes):
        return given
    try:
        return json.loads(given)
    except ValueError as error:
        raise ValueError(f"the schema is not JSON: {error}; it begins {given[:40]!r}") from None
    except RecursionError:
        raise ValueError("the schema is nested too deeply") from None


def _trie(tokenizer: Tokenizer) -> _core.Trie:
    with _TRIES_LOCK:
        found = _TRIES.get(tokenizer)
        if found is None:
            # control and unknown tokens have no text, so they are never allowed
            pieces = tokenizer.pieces_bytes(range(len(tokenizer)), skip_special=True)
            for token in tokenizer.eog_ids:
                pieces[token] = b""
            found = _TRIES[tokenizer] = _core.Trie(pieces)
        return found


def _token_id(token: str | int, tokenizer: Tokenizer) -> int:
    """Return the id of a token that a grammar names."""
    if isinstance(token, int):
        if token >= len(tokenizer):
            raise ValueError(
                f"the grammar names token {token}; expected an id below {len(tokenizer)}"
            )
        return token
    found = tokenizer.ids(token)
    if not found:
        raise ValueError(f"the grammar names the token {token!r}; expected one of the vocabulary")
    return found[0]


class Constraint:
    """A grammar applied to the tokens of a vocabulary. Safe to share between threads.

    States are ints. A state keeps its meaning, and what follows from it is cached.

    Parameters
    ----------
    grammar : Grammar
    tokenizer : Tokenizer

    Examples
    --------
    >>> import tinyllm as tl
    >>> tokenizer = tl.load().tokenizer
    >>> constraint = tl.Grammar.regex("ab?").constraint(tokenizer)
    >>> state = constraint.accept(constraint.start(), tokenizer.id("a"))
    >>> constraint.is_complete(state), constraint.is_finished(state)
    (True, False)
    """

    def __init__(self, grammar: Grammar, tokenizer: Tokenizer) -> None:
        self._program = grammar._program
        self._tokenizer_piece = functools.partial(tokenizer.pieces_bytes, skip_special=True)
        self._eog = np.array(sorted(tokenizer.eog_ids), np.int64)
        self._ends = frozenset(tokenizer.eog_ids)
        self._lock = threading.Lock()
        named = [_token_id(token, tokenizer) for token in self._program.tokens]
        nodes = self._program.with_tokens(named)
        self._automaton = _core.Automaton(nodes, self._program.root, _trie(tokenizer))

    @property
    def states(self) -> int:
        """The number of cached states."""
        return self._automaton.states

    def start(self) -> int:
        """Return the state before any text.

        Returns
        -------
        int
        """
        return self._automaton.start

    def mask(self, state: int) -> NDArray[np.bool_]:
        """Return which tokens may come next.

        Tokens that end a generation are allowed where the text is complete.

        Parameters
        ----------
        state : int

        Returns
        -------
        numpy.ndarray of bool, shape (len(tokenizer),)

        Raises
        ------
        tinyllm.UnsupportedError
            If there are too many ways to parse the text; the message names the rule.
        """
        with self._lock:
            try:
                mask = self._automaton.mask(state)
            except UnsupportedError as error:
                node = self._automaton.look(state)[1]
                raise UnsupportedError(f"{error}; in rule {self._program.owner(node)!r}") from None
            complete = self._automaton.look(state)[0]
        mask[self._eog] = complete
        return mask

    def accept(self, state: int, token: int) -> int:
        """Return the state after a token.

        Parameters
        ----------
        state, token : int

        Returns
        -------
        int
            0 if the token is not allowed here. A token without text is allowed only where the
            grammar names it.
        """
        piece = self._tokenizer_piece([token])[0]
        if not self._program.tokens or token in self._ends:
            return self.accept_bytes(state, piece)
        with self._lock:
            return self._automaton.accept(state, token, piece)

    def accept_bytes(self, state: int, data: bytes) -> int:
        """Return the state after some bytes.

        Parameters
        ----------
        state : int
        data : bytes

        Returns
        -------
        int
            0 if the bytes are not allowed here, or `data` is empty.
        """
        with self._lock:
            return advance(self._automaton, state, data, self._program) if data else 0

    def is_complete(self, state: int) -> bool:
        """Return whether the text may end here.

        Parameters
        ----------
        state : int

        Returns
        -------
        bool
        """
        with self._lock:
            return self._automaton.look(state)[0]

    def is_finished(self, state: int) -> bool:
        """Return whether the text must end here.

        Parameters
        ----------
        state : int

        Returns
        -------
        bool
        """
        with self._lock:
            complete, node, _ = self._automaton.look(state)
        return complete and node < 0

    def expected(self, state: int) -> str:
        """Return which bytes may follow, in words, for messages.

        Parameters
        ----------
        state : int

        Returns
        -------
        str
        """
        with self._lock:
            _, node, following = self._automaton.look(state)
        rule = f" in rule {self._program.owner(node)!r}" if node >= 0 else ""
        shown = repr(following[:20])[1:] + ("..." if len(following) > 20 else "")
        return f"one of the bytes {shown}{rule}"
