r"""The string formats of JSON Schema, as regular expressions; other formats are ignored.

A format that is not `exact` leaves out rare texts (hostnames of many long labels, regular
expressions with deep groups), so its complement is not known.
"""

from __future__ import annotations

import functools

from . import regex
from .expr import Expr

__all__ = ["FORMATS", "exact", "format_expr"]

_DAYS = (
    r"((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    r"|02-(0[1-9]|1[0-9]|2[0-8]))"
)
_FOURTH = r"(0[48]|[2468][048]|[13579][26])"
_LEAP_YEAR = rf"([0-9]{{2}}{_FOURTH}|([02468][048]|[13579][26])00)"
_DATE = rf"([0-9]{{4}}-{_DAYS}|{_LEAP_YEAR}-02-29)"
_HOUR_MINUTE = r"([01][0-9]|2[0-3]):[0-5][0-9]"
_ZONE = rf"([Zz]|[+-]{_HOUR_MINUTE})"
_FRACTION = r"(\.[0-9]+)?"
# a leap second is at the end of a day in UTC
_TIME = (
    rf"({_HOUR_MINUTE}:[0-5][0-9]{_FRACTION}{_ZONE}"
    rf"|23:59:60{_FRACTION}([Zz]|[+-]00:00))"
)

_BYTE = r"(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"{_BYTE}(\.{_BYTE}){{3}}"
_H16 = r"[0-9A-Fa-f]{1,4}"
_LS32 = rf"({_H16}:{_H16}|{_IPV4})"
_IPV6 = "|".join(
    [
        rf"({_H16}:){{6}}{_LS32}",
        rf"::({_H16}:){{5}}{_LS32}",
        *(
            rf"(({_H16}:){{0,{n}}}{_H16})?::({_H16}:){{{4 - n}}}{_LS32}"
            for n in range(5)
        ),
        rf"(({_H16}:){{0,5}}{_H16})?::{_H16}",
        rf"(({_H16}:){{0,6}}{_H16})?::",
    ]
)  # fmt: skip


def _label(longest: int) -> str:
    # "--" in places 3 and 4 is for encoded names, which have rules of their own
    end, any_ = "[A-Za-z0-9]", "[A-Za-z0-9-]"
    four = f"{end}{any_}({end}{any_}|-{end}){any_}{{0,{longest - 5}}}{end}"
    return f"({end}({end}|{any_}{end}|{any_}{any_}{end})?|{four})"


# at most 253 characters: few long labels or many short ones
_HOSTNAME = "|".join(
    rf"{_label(longest)}(\.{_label(longest)}){{0,{253 // (longest + 1) - 1}}}"
    for longest in (63, 30, 14)
)

_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
_DOMAIN = rf"({_HOSTNAME}|\[{_IPV4}\]|\[IPv6:({_IPV6})\])"
_QUOTED = r'"([ !#-\[\]-~]|\\[ -~])*"'


def _email(text: str, quoted: str) -> str:
    return rf"({text}+(\.{text}+)*|{quoted})@{_DOMAIN}"


def _uri(more: str, private: str) -> tuple[str, str]:
    """Return a URI and a relative reference; `more` are the characters beyond ASCII."""
    percent = "%[0-9A-Fa-f]{2}"
    char = f"([A-Za-z0-9._~!$&'()*+,;=:@{more}-]|{percent})"
    without_colon = f"([A-Za-z0-9._~!$&'()*+,;=@{more}-]|{percent})"
    user = f"([A-Za-z0-9._~!$&'()*+,;=:{more}-]|{percent})*"
    name = f"([A-Za-z0-9._~!$&'()*+,;={more}-]|{percent})*"
    future = r"[Vv][0-9A-Fa-f]+\.[A-Za-z0-9._~!$&'()*+,;=:-]+"
    authority = rf"({user}@)?(\[({_IPV6}|{future})\]|{name})(:[0-9]*)?"
    segments = f"(/{char}*)*"
    absolute = f"/({char}+{segments})?"
    query = rf"(\?({char}|[/?{private}])*)?(#({char}|[/?])*)?"
    scheme = f"[A-Za-z][A-Za-z0-9+.-]*:(//{authority}{segments}|{absolute}|{char}+{segments}|)"
    relative = f"(//{authority}{segments}|{absolute}|{without_colon}+{segments}|)"
    return scheme + query, relative + query


_UCS = "".join(
    rf"\u{{{low:x}}}-\u{{{high:x}}}"
    for low, high in [
        (0xA0, 0xD7FF), (0xF900, 0xFDCF), (0xFDF0, 0xFFEF),
        *((plane << 16, plane << 16 | 0xFFFD) for plane in range(1, 14)),
        (0xE1000, 0xEFFFD),
    ]
)  # fmt: skip
_URI, _RELATIVE = _uri("", "")
_IRI, _RELATIVE_IRI = _uri(_UCS, r"\u{e000}-\u{f8ff}\u{f0000}-\u{ffffd}\u{100000}-\u{10fffd}")

_VARIABLE = r"([A-Za-z0-9_]|%[0-9A-Fa-f]{2})"
_VARIABLE = rf"{_VARIABLE}+(\.{_VARIABLE}+)*(:[1-9][0-9]{{0,3}}|\*)?"
_TEMPLATE = (
    rf"([!#$&(-;=?-\[\]_a-z~\u{{e000}}-\u{{f8ff}}{_UCS}]|%[0-9A-Fa-f]{{2}}"
    rf"|\{{[+#./;?&]?{_VARIABLE}(,{_VARIABLE})*\}})*"
)
_POINTER = "(/([^/~]|~[01])*)*"
_DURATION_TIME = "T([0-9]+H([0-9]+M([0-9]+S)?)?|[0-9]+M([0-9]+S)?|[0-9]+S)"
_DURATION_DATE = "([0-9]+Y([0-9]+M([0-9]+D)?)?|[0-9]+M([0-9]+D)?|[0-9]+D)"


def _regex(depth: int) -> str:
    """Return ECMAScript's regular expressions with groups nested up to some depth."""
    escape = r"\\([dDsSwWbBfnrtv0^$\\.*+?()[\]{}|/-]|c[A-Za-z]|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4})"
    # ranges are not checked to be in order, so they are only those of letters and digits
    member = rf"([^\\\]\[^-]|{escape.replace('bB', 'b')})"
    ranges = "(0-9|a-z|A-Z|a-f|A-F|0-7|1-9)"
    one = rf"([^\\^$.*+?()[\]{{}}|/]|/|\.|{escape}|\[\^?-?({ranges}|{member})*-?\])"
    if depth:
        one = rf"({one}|\((\?(:|=|!|<=|<!))?{_regex(depth - 1)}\))"
    count = r"([*+?]|\{([0-9]|[1-9][0-9])(,)?\})\??"
    return rf"((\^|\$|{one}({count})?)*(\|(\^|\$|{one}({count})?)*)*)"


#: Name -> regular expression of the whole text.
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}[Tt]{_TIME}",
    "duration": rf"P({_DURATION_DATE}({_DURATION_TIME})?|{_DURATION_TIME}|[0-9]+W)",
    "uuid": r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "hostname": _HOSTNAME,
    "idn-hostname": _HOSTNAME,
    "email": _email(_ATEXT, _QUOTED),
    "idn-email": _email(_ATEXT.replace("~-]", r"~\u{a0}-\u{d7ff}\u{f900}-\u{fdcf}-]"), _QUOTED),
    "uri": _URI,
    "uri-reference": f"{_URI}|{_RELATIVE}",
    "iri": _IRI,
    "iri-reference": f"{_IRI}|{_RELATIVE_IRI}",
    "uri-template": _TEMPLATE,
    "json-pointer": _POINTER,
    "relative-json-pointer": rf"(0|[1-9][0-9]*)(#|{_POINTER})",
    "regex": _regex(2),
}  # fmt: skip
_EXACT = frozenset("date uuid ipv4 ipv6 duration json-pointer relative-json-pointer".split())


def exact(name: str) -> bool:
    """Return whether the expression of a format has all of its texts."""
    return name in _EXACT


@functools.cache
def format_expr(name: str) -> Expr:
    """Return the texts of a format as an expression."""
    return regex.parse(FORMATS[name])
