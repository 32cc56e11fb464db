"""Questions about a long context whose answers are known: made offline, or read from SCBench files.

Six kinds after SCBench (arXiv:2412.10319, table 1): copying (``needle``, ``kv``, ``prefix_suffix``),
following (``variables``) and global ones (``many_shot``, ``numbers``). Each session has one context
and several questions about it.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tamis.errors import TamisFileError, TamisValueError


@dataclass(frozen=True)
class Turn:
    """A question and the answer that continues it."""

    question: str
    answer: str


@dataclass(frozen=True)
class Session:
    """One context and the questions asked about it, in order."""

    task: str
    context: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class _Plan:
    """Lines that carry answers, an endless supply of other lines, and what is asked."""

    intro: str
    planted: list[str]
    others: Iterator[str]
    turns: list[Turn]


def make_sessions(
    task: str,
    count_tokens: Callable[[str], int],
    *,
    tokens: int,
    text: str = "",
    sessions: int = 2,
    turns: int = 3,
    seed: int = 0,
) -> list[Session]:
    """Sessions whose contexts have about ``tokens`` tokens, the same for the same seed.

    Args:
        task: One of ``TASKS``.
        count_tokens: Tokens of a text.
        tokens: Of each context.
        text: Prose for the lines that carry no answer; only ``needle`` uses it.
        sessions: How many.
        turns: Questions of each.
        seed: Of everything random.

    Raises:
        TamisValueError: Unknown task, or a length that does not hold the lines with the answers.
    """
    if task not in TASKS:
        raise TamisValueError(
            f"kv_tasks.make_sessions: task: got {task!r}, wanted one of {', '.join(TASKS)}."
        )
    return [
        _session(task, count_tokens, tokens, text, turns, random.Random(f"{seed} {task} {i}"))
        for i in range(sessions)
    ]


def _session(
    task: str,
    count_tokens: Callable[[str], int],
    tokens: int,
    text: str,
    turns: int,
    rng: random.Random,
) -> Session:
    plan = TASKS[task](rng, turns, text)
    used = count_tokens("\n".join([plan.intro, *plan.planted]))
    if used > tokens:
        raise TamisValueError(
            f"kv_tasks.make_sessions: tokens: got {tokens}, wanted at least {used} for the lines with "
            f"the answers of {task}."
        )
    lines: list[str] = []
    while used < tokens:
        lines.append(next(plan.others))
        used += count_tokens(lines[-1] + "\n")
    for i, line in enumerate(plan.planted):  # at even depths, each somewhere in its stretch
        depth = (i + rng.random()) / len(plan.planted)
        lines.insert(round(depth * len(lines)), line)
    return Session(task, "\n".join([plan.intro, *lines]) + "\n", tuple(plan.turns))


def read_sessions(path: str | Path, limit: int | None = None) -> list[Session]:
    """Sessions of an SCBench file: one JSON object {id, context, multi_turns} a line.

    Raises:
        TamisFileError: A line is not such an object, or there is none.
    """
    path = Path(path)
    found: list[Session] = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if len(found) == limit:
                    break
                if line.strip():
                    found.append(_read(line, f"{path}: line {number}", path.stem))
    except (OSError, UnicodeDecodeError) as error:
        raise TamisFileError(
            f"kv_tasks.read_sessions: path: got {path} ({error}), wanted a UTF-8 file of JSON lines."
        ) from error
    if not found:
        raise TamisFileError(
            f"kv_tasks.read_sessions: path: got {path} without a session, wanted JSON lines."
        )
    return found


def _read(line: str, where: str, task: str) -> Session:
    try:
        item = json.loads(line)
        turns = tuple(_turn(each) for each in item["multi_turns"])
        context = item["context"]
        if not isinstance(context, str) or not turns:
            raise TypeError("no context or no turns")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise TamisFileError(
            f"kv_tasks.read_sessions: {where}: got {error}, wanted {{id, context, multi_turns: "
            "[{input, answer}]}."
        ) from None
    return Session(str(item.get("task", task)), context.rstrip("\n") + "\n", turns)


def _turn(item: Any) -> Turn:
    question, answer = item["input"], item["answer"]
    if isinstance(answer, list):
        answer = answer[0]
    if not isinstance(question, str) or not isinstance(answer, str | int | float):
        raise TypeError("an input or answer that is no text")
    return Turn(f"\n{question.strip()}\n", f" {str(answer).strip()}")


# The tasks.

_CITIES = (
    "Paris Rome Cairo Lima Oslo Delhi Quito Tokyo Berlin Madrid Vienna Athens Lisbon Dublin Prague "
    "Warsaw Sofia Tunis Havana Bogota Nairobi Manila Seoul Hanoi"
).split()
_WORDS = (
    "river stone apple cloud garden window silver bridge candle forest mirror basket hammer island "
    "ladder market needle orange pencil rabbit saddle ticket valley wagon anchor button copper desert "
    "engine feather guitar harbor insect jacket kitchen lemon magnet north ocean paper"
).split()
_KINDS = {
    "animal": "dog cat horse cow sheep goat lion tiger bear wolf fox rabbit mouse pig duck".split(),
    "food": "bread cheese rice soup apple cake butter honey pasta salad pizza bean corn egg".split(),
    "tool": "hammer saw drill axe shovel wrench rake pliers chisel knife file clamp hoe".split(),
}


def _number(rng: random.Random, digits: int) -> str:
    return str(rng.randrange(10 ** (digits - 1), 10**digits))


def _sentences(text: str, rng: random.Random) -> Iterator[str]:
    found = [s for s in re.split(r"(?<=[.!?])\s+", text) if 40 < len(s) < 400]
    if not found:
        raise TamisValueError(
            "kv_tasks.needle: text: got no sentences of 40 to 400 characters, wanted prose."
        )
    at = rng.randrange(len(found))
    while True:
        yield " ".join(found[at % len(found)].split())
        at += 1


def _needle(rng: random.Random, turns: int, text: str) -> _Plan:
    places = rng.sample(_CITIES, turns)
    codes = {place: _number(rng, 5) for place in places}
    planted = [f"The secret code of {place} is {code}." for place, code in codes.items()]
    asked = [
        Turn(
            f"\nQuestion: What is the secret code of {p}?\nAnswer: The secret code of {p} is",
            f" {c}",
        )
        for p, c in codes.items()
    ]
    rng.shuffle(asked)
    return _Plan("Remember the secret codes.", planted, _sentences(text, rng), asked)


def _kv(rng: random.Random, turns: int, text: str) -> _Plan:
    def pair() -> tuple[str, str]:
        return _number(rng, 4), _number(rng, 5)

    def others() -> Iterator[str]:
        while True:
            key, value = pair()
            if key not in pairs:
                yield f"key {key} value {value}"

    pairs: dict[str, str] = {}
    while len(pairs) < turns:
        pairs |= dict([pair()])
    asked = [Turn(f"\nFrom the list above: key {k} value", f" {v}") for k, v in pairs.items()]
    rng.shuffle(asked)
    planted = [f"key {k} value {v}" for k, v in pairs.items()]
    return _Plan("A list of keys and values.", planted, others(), asked)


def _prefix_suffix(rng: random.Random, turns: int, text: str) -> _Plan:
    def words() -> list[str]:
        return rng.sample(_WORDS, 6)

    def others() -> Iterator[str]:
        while True:
            line = words()
            if tuple(line[:2]) not in heads:
                yield " ".join(line)

    lines: list[list[str]] = []
    heads: set[tuple[str, ...]] = set()
    while len(lines) < turns:
        line = words()
        if tuple(line[:2]) not in heads:
            heads.add(tuple(line[:2]))
            lines.append(line)
    asked = [
        Turn(
            f"\nFrom the list above, the line that ends with {line[-1]}: {a} {b}",
            " " + " ".join(line),
        )
        for a, b, *line in lines
    ]
    rng.shuffle(asked)
    return _Plan("A list of lines.", [" ".join(line) for line in lines], others(), asked)


def _variables(rng: random.Random, turns: int, text: str) -> _Plan:
    names = [f"X{n}" for n in rng.sample(range(10, 999), 400)]
    values = [_number(rng, 5) for _ in range(turns)]
    planted: list[str] = []
    asked = []
    for i, value in enumerate(values):  # each value goes through two names
        first, second = names[2 * i], names[2 * i + 1]
        planted += [f"Set {first} = {value}.", f"Set {second} = {first}."]
        asked.append(Turn(f"\nSet {second} = {first}. So the value of {second} is", f" {value}"))

    def others() -> Iterator[str]:
        while True:
            yield f"Set {rng.choice(names[2 * turns :])} = {_number(rng, 5)}."

    rng.shuffle(asked)
    return _Plan("A program.", planted, others(), asked)


def _many_shot(rng: random.Random, turns: int, text: str) -> _Plan:
    labels = dict(
        zip(_KINDS, rng.sample(["blue", "green", "red", "white", "black"], 3), strict=True)
    )
    held = {kind: rng.sample(words, len(words)) for kind, words in _KINDS.items()}
    kinds = [rng.choice(list(_KINDS)) for _ in range(turns)]
    asked = [Turn(f"\nWord: {held[kind].pop()}\nLabel:", f" {labels[kind]}") for kind in kinds]

    def others() -> Iterator[str]:
        while True:
            kind = rng.choice(list(_KINDS))
            yield f"Word: {rng.choice(held[kind])}\nLabel: {labels[kind]}"

    return _Plan("Words and their labels.", [], others(), asked)


def _numbers(rng: random.Random, turns: int, text: str) -> _Plan:
    """The largest occurs once; the others come in pairs round the median, which therefore stays."""
    base = sorted(rng.sample(range(100, 900), 9))
    largest = str(rng.randrange(900, 999))

    def others() -> Iterator[str]:
        while True:
            i = rng.randrange(9)
            yield str(base[i])
            yield str(base[8 - i])

    asked = [
        Turn("\nThe largest number in the list above is", f" {largest}"),
        Turn("\nThe median of the numbers in the list above is", f" {base[4]}"),
        Turn("\nAgain, the largest number in the list above is", f" {largest}"),
    ]
    planted = [largest, *(str(x) for x in base), *[str(base[4])] * 2]
    return _Plan("A list of numbers.", planted, others(), (asked * turns)[:turns])


TASKS: dict[str, Callable[[random.Random, int, str], _Plan]] = {
    "needle": _needle,
    "kv": _kv,
    "prefix_suffix": _prefix_suffix,
    "variables": _variables,
    "many_shot": _many_shot,
    "numbers": _numbers,
}
"""Generators by name."""
