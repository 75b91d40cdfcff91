"""The pattern language of networks as text: reads it into layers, groups and repetitions, and says where it is wrong.

    network = "INPUT" "[" H "x" W "x" D "]" { "->" item }
    item    = ( layer | "[" item { "->" item } "]" ) [ "?" ] [ "*" count ]
    layer   = kind [ size ] [ "-" count ] { option }

docs/patterns.md tells what each kind takes. Spaces and line breaks may stand between all parts.
"""

import re
from dataclasses import dataclass, field

from convserve.errors import PatternError
from convserve.graph.activations import ACTIVATIONS
from convserve.graph.ir import Volume

__all__ = ["Group", "Layer", "Pattern", "read_pattern"]

LARGEST = 1 << 20
_DEEPEST = 32


@dataclass(frozen=True, slots=True)
class _Kind:
    """What follows a kind's name: a size ("pair", "whole" or ""), "-" and a count, a rate; the options' forms.

    required: options that must be given.
    """

    example: str
    size: str = ""
    count: bool = False
    rate: bool = False
    options: dict[str, str] = field(default_factory=dict)
    required: tuple[str, ...] = ()


def _activation(name: str, parameters: dict[str, float | None]) -> _Kind:
    required = tuple(parameter.upper() for parameter, default in parameters.items() if default is None)
    options = {parameter.upper(): "real" for parameter in parameters}
    return _Kind(" ".join([name.upper(), *(f"{option}0.1" for option in required)]), options=options, required=required)


_SLIDING = {"S": "pair", "P": "pads", "D": "pair"}
KINDS: dict[str, _Kind] = {
    "CONV": _Kind("CONV3-64", size="pair", count=True, options={**_SLIDING, "G": "whole"}),
    "LOCAL": _Kind("LOCAL3-64", size="pair", count=True, options={**_SLIDING, "G": "whole"}),
    "POOL": _Kind("POOL2", size="pair", options={**_SLIDING, "CEIL": ""}),
    "AVGPOOL": _Kind("AVGPOOL2", size="pair", options={**_SLIDING, "CEIL": ""}),
    "L2POOL": _Kind("L2POOL2", size="pair", options={**_SLIDING, "CEIL": ""}),
    "GLOBALPOOL": _Kind("GLOBALPOOL"),
    "GLOBALAVGPOOL": _Kind("GLOBALAVGPOOL"),
    "FC": _Kind("FC-4096", count=True),
    "LRN": _Kind("LRN5", size="whole", options={"ALPHA": "real", "BETA": "real", "BIAS": "real"}),
    "BN": _Kind("BN", options={"EPS": "real"}),
    "DROPOUT": _Kind("DROPOUT", rate=True),
    "SOFTMAX": _Kind("SOFTMAX"),
    **{name.upper(): _activation(name, activation.parameters) for name, activation in ACTIVATIONS.items()},
}
"""Every kind of layer: what its name is followed by, and an example."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a pattern: kind, size (vertical, horizontal), count of filters or outputs, options; its place.

    optional: left out where its windows do not fit.
    """

    kind: str
    text: str
    position: int
    size: tuple[int, int] = (1, 1)
    count: int = 0
    options: dict[str, tuple[float, ...]] = field(default_factory=dict)
    optional: bool = False
    repeat: int = 1


@dataclass(frozen=True, slots=True)
class Group:
    """Items in brackets; optional: left out as a whole where a window in it does not fit."""

    items: tuple["Layer | Group", ...]
    position: int
    optional: bool = False
    repeat: int = 1


@dataclass(frozen=True, slots=True)
class Pattern:
    """A whole text: the input's volume and the items behind it."""

    text: str
    volume: Volume
    items: tuple[Layer | Group, ...]


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def skip(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def error(self, expected: str, position: int | None = None) -> PatternError:
        place = self.at if position is None else position
        found = re.match(r"->|[A-Za-z]+|\d+|\S", self.text[place:].split("\n", 1)[0])
        what = f"'{found[0]}'" if found else "the end" if not self.text[place:].strip() else "a space"
        return PatternError(f"the pattern is wrong: expected {expected}, found {what}", self.text, place)

    def take(self, mark: str) -> bool:
        self.skip()
        if self.text.startswith(mark, self.at):
            self.at += len(mark)
            return True
        return False

    def expect(self, mark: str, expected: str) -> None:
        if not self.take(mark):
            raise self.error(expected)

    def match(self, pattern: str) -> str | None:
        found = re.compile(pattern, re.ASCII).match(self.text, self.at)
        if not found:
            return None
        self.at = found.end()
        return found[0]

    def whole(self, expected: str, *, low: int = 1) -> int:
        begin = self.at
        digits = self.match(r"\d+")
        if digits is None:
            raise self.error(expected)
        if len(digits) > 7 or not low <= int(digits) <= LARGEST:
            raise PatternError(f"{digits} is out of range; allowed: {low} to {LARGEST}", self.text, begin)
        return int(digits)

    def pair(self, expected: str, *, low: int = 1) -> tuple[int, int]:
        first = self.whole(expected, low=low)
        return first, (self.whole(expected, low=low) if self.match("[xX]") else first)

    # ---- the grammar

    def pattern(self) -> Pattern:
        self.skip()
        if (self.match(r"[A-Za-z]+") or "").upper() != "INPUT":
            self.at = 0
            self.skip()
            raise self.error("INPUT, with which a pattern begins")
        self.expect("[", "the input's size, as in INPUT[32x32x3]")
        sizes = []
        for number in range(3):
            self.skip()
            if number and not self.match("[xX]"):
                raise self.error("'x' and the next of height, width and depth, as in INPUT[32x32x3]")
            self.skip()
            sizes.append(self.whole("height, width and depth, as in INPUT[32x32x3]"))
        self.expect("]", "']' behind height, width and depth")
        items = []
        while self.take("->"):
            items.append(self.item(0))
        self.skip()
        if self.at < len(self.text):
            raise self.error("'->' and a layer, or the end")
        if not items:
            raise self.error("'->' and a layer")
        return Pattern(self.text, Volume(sizes[2], sizes[0], sizes[1]), tuple(items))

    def item(self, depth: int) -> Layer | Group:
        self.skip()
        begin = self.at
        if not self.take("["):
            return self.layer()
        if depth == _DEEPEST:
            raise PatternError(f"brackets are nested too deep; allowed: {_DEEPEST}", self.text, begin)
        items = [self.item(depth + 1)]
        while self.take("->"):
            items.append(self.item(depth + 1))
        self.expect("]", "'->' and a layer, or ']'")
        optional, repeat = self.suffix()
        return Group(tuple(items), begin, optional, repeat)

    def suffix(self) -> tuple[bool, int]:
        optional = self.take("?")
        if not self.take("*"):
            return optional, 1
        self.skip()
        return optional, self.whole("how many times, as in [CONV3-64 -> RELU]*2", low=0)

    def layer(self) -> Layer:
        begin = self.at
        name = (self.match(r"(?i:L2POOL)|[A-Za-z]+") or "").upper()
        if name not in KINDS:
            raise self.error(f"a layer ({', '.join(KINDS)}) or '['", begin)
        kind = KINDS[name]
        size, count = (1, 1), 0
        if kind.size:
            values = self.numbers(kind.size, f"its size, as in {kind.example}")
            size = int(values[0]), int(values[-1])
        if kind.count:
            if not self.match("-(?!>)"):
                raise self.error(f"'-' and how many, as in {kind.example}")
            count = self.whole(f"how many, as in {kind.example}")
        if kind.rate:
            self.match(r"\d+(\.\d+)?")
        options: dict[str, tuple[float, ...]] = {}
        end = self.at
        while True:
            self.skip()
            place = self.at
            option = self.match(r"[A-Za-z]+")
            if option is None:
                break
            option = option.upper()
            if option not in kind.options:
                options_or = f"{', '.join(kind.options)} or " if kind.options else ""
                raise self.error(f"{options_or}'->' behind {name}", place)
            if option in options:
                raise PatternError(f"{option} is given twice", self.text, place)
            options[option] = self.numbers(kind.options[option], f"a number, as in {option}2")
            end = self.at
        for option in kind.required:
            if option not in options:
                raise self.error(f"{option} and its value, as in {kind.example}", end)
        text = " ".join(self.text[begin:end].split())
        optional, repeat = self.suffix()
        return Layer(name, text, begin, size, count, options, optional, repeat)

    def numbers(self, form: str, expected: str) -> tuple[float, ...]:
        if form == "whole":
            return (self.whole(expected),)
        if form == "pair":
            return self.pair(expected)
        if form == "pads":
            return self.pads(expected)
        if form == "real":
            found = self.match(r"-?\d+(\.\d+)?([eE][-+]?\d{1,2})?")
            if found is None:
                raise self.error(expected)
            return (float(found),)
        return ()

    def pads(self, expected: str) -> tuple[int, ...]:
        first = self.whole(expected, low=0)
        if self.match("[xX]"):
            return (first, self.whole(expected, low=0)) * 2
        if not self.match(","):
            return (first,) * 4
        pads = [first, self.whole(expected, low=0)]
        for _ in range(2):
            if not self.match(","):
                raise self.error("',' and the rest of top, left, bottom and right padding, as in P0,0,1,1")
            pads.append(self.whole(expected, low=0))
        return tuple(pads)


def read_pattern(text: str) -> Pattern:
    """Return a text as it is written, no layer sized or repeated yet; PatternError points where it is wrong."""
    return _Reader(text).pattern()
