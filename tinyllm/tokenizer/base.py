"""The base class of all tokenizers: public methods, special tokens, decoding, lookups."""

from __future__ import annotations

import codecs
import functools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ..base.checks import integer, is_integer
from ..base.words import dir_without, getattr_of
from .conversation import Conversations
from .explain import Explanation, Step
from .special import Partition
from .stream import StreamDecoder
from .vocab import TokenType, Vocab, to_bytes

__all__ = ["StreamDecoder", "Tokenizer"]

_SPECIAL = (TokenType.CONTROL, TokenType.UNKNOWN)


class Tokenizer(Conversations, ABC):
    """Converts text to token ids and back, with the vocabulary of a model file.

    Get a tokenizer from `load_tokenizer`, `tokenizer_from_metadata` or ``model.tokenizer``.
    Tokenizers are immutable and safe to share between threads. A token is identified by its id:
    two ids with the same text are different tokens.

    Parameters
    ----------
    metadata : Mapping
        The metadata of a GGUF file.

    Attributes
    ----------
    bos, eos, eot, eom, unk, sep, pad, cls, mask : int or None
        Ids of special tokens; None where the file has none. `fim_pre`, `fim_suf`, `fim_mid`,
        `fim_pad`, `fim_rep` and `fim_sep` are those of code completion (fill in the middle).
    eog_ids : frozenset of int
        Ids that end a generation.
    add_bos, add_eos : bool
        Whether the file asks for BOS before and EOS after a text; see `encode`.
    add_space_prefix : bool
        Whether `encode` puts a space before a text, which `decode` removes.

    Examples
    --------
    >>> from tinyllm.tokenizer import tokenizer_from_metadata
    >>> tokenizer = tokenizer_from_metadata({
    ...     "tokenizer.ggml.model": "llama",
    ...     "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a"],
    ...     "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -1.0],
    ...     "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1, 1],
    ... })
    >>> tokenizer.encode("ab a")
    [1, 6, 5, 6]
    >>> tokenizer.decode([1, 6, 5, 6], skip_special=True)
    'ab a'
    """

    __dir__ = dir_without("default_pre", "defaults", "encode_fragments", "use_core")

    #: The name of the algorithm, for display.
    kind: ClassVar[str] = ""
    #: Whether it converts text; see `UnknownTokenizer`.
    has_text: ClassVar[bool] = True
    #: Values for keys that the file does not have; see `Vocab`.
    defaults: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self._vocab = vocab = Vocab(metadata, self.defaults)
        self.bos, self.eos, self.eot, self.eom = vocab.bos, vocab.eos, vocab.eot, vocab.eom
        self.unk, self.sep, self.pad = vocab.unk, vocab.sep, vocab.pad
        self.cls, self.mask = vocab.cls, vocab.mask
        self.fim_pre, self.fim_suf, self.fim_mid = vocab.fim_pre, vocab.fim_suf, vocab.fim_mid
        self.fim_pad, self.fim_rep, self.fim_sep = vocab.fim_pad, vocab.fim_rep, vocab.fim_sep
        self.eog_ids = vocab.eog_ids
        self.add_bos, self.add_eos = vocab.add_bos, vocab.add_eos
        self.add_space_prefix = vocab.add_space_prefix
        self._partition = Partition(vocab)
        self._prefix = self._special("bos", vocab.bos) if vocab.add_bos else []
        self._suffix = self._special("eos", vocab.eos) if vocab.add_eos else []
        if vocab.add_sep:
            self._suffix = self._suffix + self._special("sep", vocab.sep)

    def _special(self, name: str, token: int | None) -> list[int]:
        if token is not None:
            return [token]
        if self._metadata.get(f"tokenizer.ggml.add_{name}_token"):
            warnings.warn(
                f"tokenizer.ggml.add_{name}_token is true, but the file has no {name} token; "
                "none is added",
                stacklevel=4,
            )
        return []

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[dict[str, Any]]]:
        """Pickle the keys that make the tokenizer, so that it needs no file elsewhere."""
        keys = [k for k in self._metadata if k.startswith(("tokenizer.", "general.architecture"))]
        return type(self), ({key: self._metadata[key] for key in keys},)

    if not TYPE_CHECKING:
        __getattr__ = getattr_of("Tokenizer")

    def __copy__(self) -> Tokenizer:
        return self  # immutable

    def __deepcopy__(self, memo: object) -> Tokenizer:
        return self

    def starting_with(self, token: int) -> Tokenizer:
        """Return a tokenizer that puts `token` before a text and nothing behind it."""
        marks = {"bos_token_id": token, "add_bos_token": True}
        marks |= {"add_eos_token": False, "add_sep_token": False}
        named = {f"tokenizer.ggml.{key}": value for key, value in marks.items()}
        return type(self)({**self._metadata, **named})

    # ---- defined by each algorithm ----

    @abstractmethod
    def _encode_fragment(self, text: bytes, after_special: bool) -> list[int]:
        """Return the ids of a fragment that has no special tokens."""

    @abstractmethod
    def _explain_fragment(self, text: bytes, after_special: bool) -> list[Step]:
        """Return the steps of `_encode_fragment`."""

    @abstractmethod
    def _render(self, token: int) -> bytes:
        """Return the bytes of a normal token."""

    # ---- encoding ----

    def encode(
        self,
        text: str | bytes,
        add_special: bool | None = None,
        parse_special: bool = False,
    ) -> list[int]:
        """Return the ids of a text.

        Parameters
        ----------
        text : str or bytes
            Any text. Bytes need not be UTF-8. In a str, a lone surrogate U+DC80 to U+DCFF stands
            for one byte (Python's ``surrogateescape``); other lone surrogates become U+FFFD.
        add_special : bool, optional
            None: add the special tokens that the file asks for (`add_bos`, `add_eos`), but no
            second BOS before a text that starts with one. True: add them all, even a second BOS,
            with a warning. False: add none.
        parse_special : bool
            Whether the text of a special token, such as ``"<s>"``, becomes that token. Use False
            for text from users. User-defined tokens are always recognized.

        Returns
        -------
        list of int

        Raises
        ------
        TypeError
            If `text` is neither str nor bytes.

        Examples
        --------
        >>> import tinyllm as tl
        >>> tl.load("demo").tokenizer.encode("", add_special=False)
        []
        """
        ids = self.encode_fragments(text, parse_special)
        if add_special is None or add_special:
            self._put_around(ids, double=add_special is not None)
        return ids

    def encode_fragments(
        self,
        text: str | bytes,
        parse_special: bool,
        change: Callable[[bytes], bytes] | None = None,
    ) -> list[int]:
        """Return the ids of a text; `change` may replace the text between special tokens.

        Parameters
        ----------
        text : str or bytes
        parse_special : bool
            As in `encode`.
        change : callable, optional
            Called with each text between special tokens; returns the plain text to encode instead.

        Returns
        -------
        list of int

        Examples
        --------
        >>> import tinyllm as tl
        >>> tokenizer = tl.load("demo").tokenizer
        >>> tokenizer.decode(tokenizer.encode_fragments("To be", True, bytes.upper))
        'TO BE'
        """
        ids: list[int] = []
        after_special = True
        for fragment in self._partition(_as_bytes(text), parse_special):
            if isinstance(fragment, int):
                ids.append(fragment)
            else:
                plain = fragment if change is None else change(fragment)
                ids += self._encode_fragment(plain, after_special)
            after_special = isinstance(fragment, int)
        return ids

    def _put_around(self, ids: list[int], double: bool) -> None:
        if self._prefix and ids[:1] == self._prefix:
            if double:
                warnings.warn(
                    "the text starts with the beginning-of-sequence token, and add_special=True "
                    "puts another before it; add_special=None does not",
                    stacklevel=3,
                )
                ids[:0] = self._prefix
        else:
            ids[:0] = self._prefix
        ids += self._suffix

    def encode_batch(
        self,
        texts: Iterable[str | bytes],
        add_special: bool | None = None,
        parse_special: bool = False,
    ) -> list[list[int]]:
        """Return the ids of each text; see `encode`.

        Parameters
        ----------
        texts : iterable of (str or bytes)
        add_special : bool, optional
        parse_special : bool

        Returns
        -------
        list of list of int
            One list per text, without padding.

        Raises
        ------
        TypeError
            If `texts` is itself a str or bytes.

        Examples
        --------
        >>> import tinyllm as tl
        >>> tl.load("demo").tokenizer.encode_batch(["", ""], add_special=False)
        [[], []]
        """
        if isinstance(texts, str | bytes | bytearray):
            raise TypeError(f"texts is {type(texts).__name__}; expected a list of texts")
        return [self.encode(text, add_special, parse_special) for text in texts]

    def control_text(self, text: str | bytes) -> str | None:
        """Return the text of a control token that a text contains, or None.

        Parameters
        ----------
        text : str or bytes

        Returns
        -------
        str or None
            The first one. `encode` reads it as the token with ``parse_special=True``, and as plain
            text without.

        Examples
        --------
        >>> import tinyllm as tl
        >>> tl.load("demo").tokenizer.control_text("To be<|endoftext|>")
        '<|endoftext|>'
        """
        for fragment in self._partition(_as_bytes(text), True):
            if isinstance(fragment, int) and self._vocab.types[fragment] == TokenType.CONTROL:
                return self._piece(fragment, False).decode(errors="replace")
        return None

    # ---- decoding ----

    def pieces_bytes(self, ids: Iterable[int] | int, skip_special: bool = False) -> list[bytes]:
        """Return the bytes of each token, which may be only a part of a character.

        Parameters
        ----------
        ids : iterable of int, or int
        skip_special : bool
            Whether control and unknown tokens become ``b""`` instead of their text.

        Returns
        -------
        list of bytes
            One per id.

        Raises
        ------
        IndexError
            If an id is outside the vocabulary.

        Examples
        --------
        >>> import tinyllm as tl
        >>> tokenizer = tl.load("demo").tokenizer
        >>> b"".join(tokenizer.pieces_bytes(tokenizer.encode("To be", add_special=False)))
        b'To be'
        """
        return [self._piece(token, skip_special) for token in self._checked(ids)]

    def pieces(self, ids: Iterable[int] | int, errors: str = "replace") -> list[str]:
        """Return the text of each token.

        Parameters
        ----------
        ids : iterable of int, or int
        errors : str
            How to decode bytes that are only a part of a character, as in `bytes.decode`:
            ``"backslashreplace"`` shows them, ``"surrogateescape"`` preserves them. Also
            ``"tinyllm.hex"``: byte E7 becomes ``<0xE7>``, the name of byte tokens in SentencePiece.

        Returns
        -------
        list of str
            One per id.

        Raises
        ------
        IndexError
            If an id is outside the vocabulary.

        Examples
        --------
        >>> import tinyllm as tl
        >>> tokenizer = tl.load("demo").tokenizer
        >>> "".join(tokenizer.pieces(tokenizer.encode("To be", add_special=False)))
        'To be'
        """
        return [piece.decode(errors=errors) for piece in self.pieces_bytes(ids)]

    def decode_bytes(
        self,
        ids: Iterable[int] | int,
        skip_special: bool = False,
        strip_prefix: bool = True,
    ) -> bytes:
        r"""Return the text of token ids as bytes.

        Parameters
        ----------
        ids : iterable of int, or int
        skip_special : bool
            Whether control and unknown tokens are left out.
        strip_prefix : bool
            Whether to remove the space that `encode` put before the text. Use False for ids that
            continue a text.

        Returns
        -------
        bytes

        Raises
        ------
        IndexError
            If an id is outside the vocabulary.

        Examples
        --------
        >>> import tinyllm as tl
        >>> tokenizer = tl.load("demo").tokenizer
        >>> tokenizer.decode_bytes(tokenizer.encode("né", add_special=False))
        b'n\xc3\xa9'
        """
        text = b"".join(self.pieces_bytes(ids, skip_special))
        return text.removeprefix(b" ") if strip_prefix and self.strips_prefix else text

    def decode(
        self,
        ids: Iterable[int] | int,
        skip_special: bool = False,
        errors: str = "replace",
        strip_prefix: bool = True,
    ) -> str:
        """Return the text of token ids.

        Spaces are not cleaned up: a space before a comma stays.

        Parameters
        ----------
        ids : iterable of int, or int
        skip_special : bool
            Whether control and unknown tokens are left out.
        errors : str
            How to decode bytes that are not UTF-8, as in `bytes.decode`.
        strip_prefix : bool
            As in `decode_bytes`.

        Returns
        -------
        str

        Raises
        ------
        IndexError
            If an id is outside the vocabulary.

        Examples
        --------
        >>> import tinyllm as tl
        >>> tokenizer = tl.load("demo").tokenizer
        >>> tokenizer.decode(tokenizer.encode("x != y", add_special=False))
        'x != y'
        """
        return self.decode_bytes(ids, skip_special, strip_prefix).decode(errors=errors)

    def stream_decoder(
        self, skip_special: bool = False, errors: str = "replace", strip_prefix: bool = True
    ) -> StreamDecoder:
        """Return a `StreamDecoder` of this vocabulary.

        Parameters
        ----------
        skip_special, errors, strip_prefix
            As in `decode`.

        Returns
        -------
        StreamDecoder

        Examples
        --------
        >>> import tinyllm as tl
        >>> decoder = tl.load("demo").tokenizer.stream_decoder()
        """
        return StreamDecoder(self, skip_special, errors, strip_prefix)

    @functools.cached_property
    def strips_prefix(self) -> bool:
        """Whether `decode` removes the space that `encode` puts before a text."""
        return self.add_space_prefix

    def _checked(self, ids: Iterable[int] | int) -> list[int]:
        given: Any = ids.tolist() if hasattr(ids, "tolist") else ids
        if not is_integer(given) and not isinstance(given, Iterable):
            raise TypeError(f"ids is {given!r}; expected ints")
        listed: list[int] = [given] if is_integer(given) else list(given)
        size = len(self._vocab)
        for i, token in enumerate(listed):
            listed[i] = integer(f"ids[{i}]", token, "an int")
            if not 0 <= listed[i] < size:
                raise IndexError(f"ids[{i}] is {token}; the vocabulary has {size} tokens")
        return listed

    def _piece(self, token: int, skip_special: bool) -> bytes:
        kind = self._vocab.types[token]
        if kind in _SPECIAL:
            return b"" if skip_special else to_bytes(self._vocab.texts[token])
        if kind == TokenType.USER_DEFINED:
            return to_bytes(self._vocab.texts[token])
        if kind == TokenType.BYTE:
            value = self._vocab.byte_value(token)
            return to_bytes(self._vocab.texts[token]) if value is None else bytes([value])
        return self._render(token)

    # ---- lookups ----

    def __len__(self) -> int:
        return len(self._vocab)

    @functools.cached_property
    def vocab(self) -> tuple[str, ...]:
        """The token texts by id, as the file spells them.

        Bytes that are not UTF-8 are lone surrogates (``surrogateescape``).
        """
        return tuple(self._vocab.texts)

    @functools.cached_property
    def _ids_of_piece(self) -> dict[bytes, list[int]]:
        found: dict[bytes, list[int]] = {}
        for token in range(len(self)):
            found.setdefault(self._piece(token, False), []).append(token)
        return found

    @functools.cached_property
    def _ids_of_text(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for token, text in enumerate(self._vocab.texts):
            found.setdefault(text, []).append(token)
        return found

    def ids(self, piece: str | bytes) -> list[int]:
        """Return all ids of a piece.

        Parameters
        ----------
        piece : str or bytes
            The text of a token, as `pieces` and `pieces_bytes` return it (``" Hello"``). If no
            token has this text, it is taken as the vocabulary's own spelling (``"▁Hello"``,
            ``"ĠHello"``, ``"<0x0A>"``).

        Returns
        -------
        list of int
            In ascending order; empty if there is none.

        Examples
        --------
        >>> import tinyllm as tl
        >>> tl.load("demo").tokenizer.ids("no such piece")
        []
        """
        raw = _as_bytes(piece)
        found = self._ids_of_piece.get(raw)
        if found is None:
            found = self._ids_of_text.get(raw.decode(errors="surrogateescape"), [])
        return list(found)

    def id(self, piece: str | bytes) -> int:
        """Return the lowest id of a piece, without byte tokens.

        Parameters
        ----------
        piece : str or bytes
            As in `ids`.

        Returns
        -------
        int

        Raises
        ------
        KeyError
            If there is none; the message names the piece.

        Examples
        --------
        >>> import tinyllm as tl
        >>> tokenizer = tl.load("demo").tokenizer
        >>> tokenizer.pieces([tokenizer.id("e")])
        ['e']
        """
        found = self.ids(piece)
        for token in found:
            if self._vocab.types[token] != TokenType.BYTE:
                return token
        if found:
            raise KeyError(
                f"piece is {piece!r}; it is only the byte token {found[0]}, which ids() returns"
            )
        raise KeyError(f"piece is {piece!r}; expected the text of a token")

    def _at(self, token: int) -> int:
        return self._checked([token])[0]

    def token_type(self, token: int) -> TokenType:
        """Return the type of a token.

        Parameters
        ----------
        token : int

        Returns
        -------
        TokenType

        Raises
        ------
        IndexError
            If the id is outside the vocabulary.

        Examples
        --------
        >>> import tinyllm as tl
        >>> tokenizer = tl.load("demo").tokenizer
        >>> tokenizer.token_type(tokenizer.id("e")).name
        'NORMAL'
        """
        return TokenType(self._vocab.types[self._at(token)])

    def score(self, token: int) -> float:
        """Return the score of a token, or 0 if the file has no scores.

        Parameters
        ----------
        token : int

        Returns
        -------
        float

        Raises
        ------
        IndexError
            If the id is outside the vocabulary.

        Examples
        --------
        >>> import tinyllm as tl
        >>> tl.load("demo").tokenizer.score(0)
        0.0
        """
        token = self._at(token)
        return 0.0 if self._vocab.scores is None else self._vocab.scores[token]

    def is_special(self, token: int) -> bool:
        """Return whether a token is a control or unknown token, which `skip_special` leaves out.

        Parameters
        ----------
        token : int

        Returns
        -------
        bool

        Raises
        ------
        IndexError
            If the id is outside the vocabulary.

        Examples
        --------
        >>> import tinyllm as tl
        >>> tokenizer = tl.load("demo").tokenizer
        >>> tokenizer.is_special(tokenizer.id("e"))
        False
        """
        return self._vocab.types[self._at(token)] in _SPECIAL

    def is_eog(self, token: int) -> bool:
        """Return whether a token ends a generation.

        Parameters
        ----------
        token : int

        Returns
        -------
        bool

        Raises
        ------
        IndexError
            If the id is outside the vocabulary.

        Examples
        --------
        >>> import tinyllm as tl
        >>> tokenizer = tl.load("demo").tokenizer
        >>> tokenizer.is_eog(tokenizer.id("e"))
        False
        """
        return self._at(token) in self.eog_ids

    def explain(
        self,
        text: str | bytes,
        add_special: bool | None = None,
        parse_special: bool = False,
    ) -> Explanation:
        """Return the steps that turn a text into ids, as a table that can be printed.

        Parameters
        ----------
        text, add_special, parse_special
            As in `encode`.

        Returns
        -------
        Explanation
            ``print`` shows the table; ``.steps`` and ``.ids`` hold its values.

        Examples
        --------
        >>> import tinyllm as tl
        >>> tl.load("demo").tokenizer.explain("", add_special=False).ids
        []
        """
        steps: list[Step] = []
        after_special = True
        for fragment in self._partition(_as_bytes(text), parse_special):
            if isinstance(fragment, int):
                kind = TokenType(self._vocab.types[fragment]).name.lower()
                spelling = to_bytes(self._vocab.texts[fragment])
                steps.append(Step("special", spelling, f"{kind} token", [fragment]))
            else:
                steps += self._explain_fragment(fragment, after_special)
            after_special = isinstance(fragment, int)
        ids = [token for step in steps for token in step.ids]
        if add_special is None or add_special:
            before = len(ids)
            around = list(ids)
            self._put_around(around, double=add_special is not None)
            head = around[: len(around) - before - len(self._suffix)]
            if head:
                steps.insert(0, Step("special", b"", "add_bos", head))
            if self._suffix:
                steps.append(Step("special", b"", "add_eos or add_sep", list(self._suffix)))
            ids = around
        return Explanation(steps, ids, self.pieces_bytes(ids))

    def __repr__(self) -> str:
        pre = f", pre {self._vocab.pre!r}" if self._vocab.pre else ""
        return f"<tinyllm.Tokenizer: {self.kind}, {len(self)} tokens{pre}>"


def _hex(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    wrong = error.object[error.start : error.end]
    return "".join(f"<0x{byte:02X}>" for byte in wrong), error.end


codecs.register_error("tinyllm.hex", _hex)


def _as_bytes(text: str | bytes | bytearray | memoryview) -> bytes:
    if isinstance(text, str):
        return to_bytes(text)
    if isinstance(text, bytes | bytearray | memoryview):
        return bytes(text)
    raise TypeError(f"text is {type(text).__name__}; expected str or bytes")
