"""Regular expressions that match in time proportional to the text, whoever wrote them.

A pattern becomes an automaton whose possible states are followed together, so there is nothing to go back to. What
that cannot do (references, looking around) is refused, and so is a pattern whose automaton would be large.
Part of the syntax of `re`: characters, `.`, `[...]`, `\\d \\w \\s` and escapes, `(...)`, `(?:...)`, `|`, `* + ? {m,n}`,
and `^` and `$` at the ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, NoReturn

import attrs

__all__ = ["MAX_PATTERN", "MAX_STATES", "Pattern", "PatternError"]

MAX_PATTERN: Final = 256
"""Characters of a pattern."""
MAX_STATES: Final = 2_000
"""States of its automaton."""
MAX_DEPTH: Final = 20
"""Groups in groups."""

_COUNT: Final = re.compile(r"\{([0-9]{1,3})(,([0-9]{0,3}))?\}")
_SETS: Final = {"d": "0123456789", "s": " \t", "w": "abcdefghijklmnopqrstuvwxyz0123456789_"}

Test = Callable[[str], bool]
Piece = Callable[[int], int]
"""Given the state that comes after it, adds a part's states and returns the first of them."""


class PatternError(ValueError):
    """The pattern is wrong, too large, or asks for what is not offered."""


@attrs.define
class _State:
    test: Test | None = None
    """What the next character must be; None: go on without one."""
    after: list[int] = attrs.field(factory=list)


class Pattern:
    """A pattern that must match a whole text. Letters of a pattern match either case; texts are in lower case."""

    def __init__(self, text: str) -> None:
        """Raises PatternError."""
        if len(text) > MAX_PATTERN:
            raise PatternError(f"a pattern has at most {MAX_PATTERN} characters")
        self._text = text.lower() if "\\" not in text else _lowered(text)
        self._at = 0
        self._states: list[_State] = [_State()]
        body = self._text.removeprefix("^")
        if body.endswith("$") and not body.endswith("\\$"):
            body = body[:-1]
        self._text = body
        piece = self._alternatives(0)
        if self._at < len(body):
            self._refuse("a parenthesis closes nothing")
        self._first = piece(0)

    def matches(self, text: str) -> bool:
        """Whether the whole text matches; takes at most its length times `MAX_STATES` steps."""
        now = self._reached([self._first])
        for character in text:
            now = self._reached(
                [
                    state.after[0]
                    for state in map(self._states.__getitem__, now)
                    if state.test is not None and state.test(character)
                ]
            )
        return 0 in now

    def _reached(self, states: list[int]) -> set[int]:
        """These states, and those to which they lead without a character."""
        found: set[int] = set()
        while states:
            number = states.pop()
            if number not in found:
                found.add(number)
                if self._states[number].test is None:
                    states.extend(self._states[number].after)
        return found

    # Building.

    def _refuse(self, why: str) -> NoReturn:
        raise PatternError(f"at character {self._at + 1} of the pattern: {why}")

    def _add(self, test: Test | None, *after: int) -> int:
        if len(self._states) >= MAX_STATES:
            raise PatternError(f"the pattern needs more than {MAX_STATES} states: repeat less")
        self._states.append(_State(test, list(after)))
        return len(self._states) - 1

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self) -> str:
        character = self._peek()
        if not character:
            self._refuse("it ends too early")
        self._at += 1
        return character

    def _alternatives(self, depth: int) -> Piece:
        if depth > MAX_DEPTH:
            self._refuse(f"more than {MAX_DEPTH} groups in each other")
        choices = [self._sequence(depth)]
        while self._peek() == "|":
            self._at += 1
            choices.append(self._sequence(depth))
        if len(choices) == 1:
            return choices[0]
        return lambda after: self._add(None, *[choice(after) for choice in choices])

    def _sequence(self, depth: int) -> Piece:
        parts: list[Piece] = []
        while self._peek() not in ("", "|", ")"):
            parts.append(self._repeated(self._single(depth)))

        def piece(after: int) -> int:
            for part in reversed(parts):
                after = part(after)
            return after

        return piece

    def _single(self, depth: int) -> Piece:
        character = self._take()
        if character == "(":
            if self._peek() == "?":
                if self._text[self._at : self._at + 2] != "?:":
                    self._refuse("of the groups with '?' there is only '(?:'")
                self._at += 2
            inner = self._alternatives(depth + 1)
            if self._peek() != ")":
                self._refuse("a group is not closed")
            self._at += 1
            return inner
        if character in "*+?{":
            self._refuse(f"{character!r} repeats nothing")
        if character in "^$":
            self._refuse("'^' and '$' stand at the ends only, where they may be left out")
        test = self._test(character)
        return lambda after: self._add(test, after)

    def _test(self, character: str) -> Test:
        if character == ".":
            return lambda seen: True
        if character == "[":
            return self._set()
        wanted = self._escaped() if character == "\\" else character
        return lambda seen: seen in wanted

    def _escaped(self) -> str:
        character = self._take()
        if character.isalnum() and character not in _SETS:
            self._refuse(f"the escape '\\{character}' is not offered")
        return _SETS.get(character, character)

    def _set(self) -> Test:
        negated = self._peek() == "^"
        if negated:
            self._at += 1
        members: set[str] = set()
        while (character := self._take()) != "]" or not members:
            wanted = self._escaped() if character == "\\" else character
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                last = self._take()
                last = self._escaped() if last == "\\" else last
                if len(wanted) != 1 or len(last) != 1 or not ord(wanted) <= ord(last) < 128:
                    self._refuse("a range goes from one character to a later one, both ASCII")
                wanted = "".join(map(chr, range(ord(wanted), ord(last) + 1))).lower()
            members.update(wanted)
        return lambda seen: (seen in members) is not negated

    def _repeated(self, part: Piece) -> Piece:
        character = self._peek()
        if character not in ("*", "+", "?", "{"):
            return part
        low, high = {"*": (0, None), "+": (1, None), "?": (0, 1), "{": (0, 0)}[character]
        if character == "{":
            found = _COUNT.match(self._text, self._at)
            if found is None:
                self._refuse("a count is {m}, {m,} or {m,n}")
            self._at = found.end()
            low = int(found[1])
            high = low if found[2] is None else int(found[3]) if found[3] else None
            if high is not None and high < low:
                self._refuse("a count's second number is less than its first")
        else:
            self._at += 1
        if self._peek() in ("*", "+", "?", "{") and self._peek():
            self._refuse("something is repeated twice; put it into a group")
        return lambda after: self._counted(part, low, high, after)

    def _counted(self, part: Piece, low: int, high: int | None, after: int) -> int:
        if high is None:
            loop = self._add(None, after)
            self._states[loop].after.append(part(loop))
            after = loop
        else:
            end = after
            for _ in range(high - low):
                after = self._add(None, part(after), end)
        for _ in range(low):
            before, after = after, part(after)
            if after == before:  # It matches nothing, as often as you like.
                break
        return after


def _lowered(text: str) -> str:
    """The pattern in lower case, but for what follows a backslash: `\\D` must not become `\\d`."""
    return re.sub(r"(\\.)|([^\\]+)", lambda found: found[1] or found[2].lower(), text)
