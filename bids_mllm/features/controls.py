"""Null instructions: texts that ask nothing of the clip, beside which the real ones are read."""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from bids_mllm.exceptions import UsageError
from bids_mllm.records import Instruction

NULL_GROUP = "null"
NULL_KINDS = ("empty", "scrambled", "unrelated")
EMPTY_KEY = "NULLempty"

# Heads and one-word items about nothing that a film shows. Any cut in the list is still a sentence, and no
# two heads begin with the same word.
_NEUTRAL_TEXTS = (
    ("Add the numbers", "nine, four, twelve, seven, thirty, eleven, sixty, two, forty, fifteen, eight, twenty"),
    ("Sort the units", "gram, litre, ampere, kelvin, joule, pascal, volt, newton, hertz, mole, watt, ohm"),
    ("Recite the letters", "alpha, gamma, delta, epsilon, theta, kappa, lambda, omega, sigma, upsilon, zeta, psi"),
    ("Translate the weekdays", "Monday, Thursday, Sunday, Tuesday, Friday, Wednesday, Saturday"),
    ("Conjugate the verbs", "owe, mean, belong, consist, deserve, cost, lack, differ, depend, equal, exist, suffice"),
    ("Name the elements after", "hydrogen, helium, lithium, boron, nitrogen, fluorine, neon, argon, krypton, xenon"),
    ("Spell the adverbs", "seldom, rather, thus, hence, moreover, nevertheless, hardly, mostly, nearly, otherwise"),
    ("Multiply the fractions", "thirds, fifths, eighths, ninths, tenths, sixths, twelfths, sevenths, quarters, halves"),
    ("Abbreviate the months", "January, October, March, December, February, August, April, November, June, July"),
    ("Round the decimals", "0.271, 3.062, 14.95, 0.508, 7.333, 21.66, 5.125, 9.871, 2.449, 1.618"),
    ("Define the terms", "noun, clause, syllable, prefix, vowel, comma, suffix, pronoun, adverb, tense, plural, stem"),
    ("Convert the currencies", "euro, krona, peso, rupee, franc, yen, dinar, zloty, lira, rand, won, forint"),
    ("List the theorems of", "Pythagoras, Euler, Fermat, Gauss, Bayes, Noether, Cauchy, Rolle, Taylor, Green"),
    ("Compare the tempos", "adagio, allegro, andante, presto, largo, vivace, moderato, lento, allegretto, grave"),
    ("Factorise the integers", "84, 91, 360, 1001, 57, 128, 729, 55, 210, 343, 96, 1024"),
    ("Order the prefixes", "kilo, nano, giga, micro, tera, pico, mega, milli, femto, deci, centi, hecto"),
)  # fmt: skip


def null_kind(instruction: Instruction) -> str | None:
    """Return which kind of null instruction this is, or None for a real one."""
    if instruction.group != NULL_GROUP:
        return None
    return next((kind for kind in NULL_KINDS if instruction.key.endswith(kind)), None)


def null_instructions(
    instructions: Sequence[Instruction], kinds: Sequence[str], seed: int = 0
) -> tuple[Instruction, ...]:
    """Return the null instructions that belong to the chosen ones, all of the group ``null``.

    Parameters
    ----------
    instructions
        The real ones.
    kinds
        ``empty``: one instruction without a text, with the key ``NULLempty``. ``scrambled``: for each
        instruction its own words in an order that differs from its own, with ``scrambled`` behind its key.
        ``unrelated``: for each an instruction of as many words that is about nothing shown, with
        ``unrelated`` behind its key. Words are what white space divides.
    seed
        Of the orders and of the choice among the neutral texts. The order of an instruction's words does not
        depend on the other instructions.

    Returns
    -------
    tuple of Instruction
        In the order of `kinds`, each kind once, and within a kind in the order of `instructions`.

    Raises
    ------
    UsageError
        When a kind is not known, words cannot be put into another order, more instructions of one length are
        asked for than there are neutral texts, or a key is taken.
    """
    makers: dict[str, Callable[[], Iterator[Instruction]]] = {
        "empty": lambda: iter([Instruction(EMPTY_KEY, "No instruction", "", NULL_GROUP)]),
        "scrambled": lambda: (_scrambled(instruction, seed) for instruction in instructions),
        "unrelated": lambda: _unrelated(instructions, seed),
    }
    unknown = next((kind for kind in kinds if kind not in makers), None)
    if unknown is not None:
        raise UsageError(f"There is no null instruction of the kind {unknown!r}; choose from {', '.join(makers)}.")
    made = tuple(instruction for kind in dict.fromkeys(kinds) for instruction in makers[kind]())
    _check_keys((*instructions, *made))
    return made


def _check_keys(instructions: Sequence[Instruction]) -> None:
    """Raise a UsageError where a null instruction would have the key of another instruction."""
    counts = Counter(instruction.key.lower() for instruction in instructions)
    taken = next((i.key for i in instructions if i.group == NULL_GROUP and counts[i.key.lower()] > 1), None)
    if taken is not None:
        raise UsageError(f"The key {taken!r} is needed for a null instruction; give your instruction another key.")


def _generator(seed: int, kind: str, instruction: Instruction) -> np.random.Generator:
    """Return a random generator that follows from the seed and the instruction's own text."""
    digest = hashlib.sha256(f"{seed} {kind} {instruction.text}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def _scrambled(instruction: Instruction, seed: int) -> Instruction:
    words = instruction.text.split()
    if len(set(words)) < 2:
        raise UsageError(
            f"The instruction {instruction.key} ({instruction.text!r}) has no other order of its words; leave it or "
            "the null instructions 'scrambled' out."
        )
    rng = _generator(seed, "scrambled", instruction)
    order = words
    while order == words:
        order = [words[i] for i in rng.permutation(len(words))]
    return Instruction(
        f"{instruction.key}scrambled", f"{instruction.name}, words scrambled", " ".join(order), NULL_GROUP
    )


def _unrelated(instructions: Sequence[Instruction], seed: int) -> Iterator[Instruction]:
    """Give for each instruction a neutral one of its length; no text is given twice."""
    used: set[str] = set()
    for instruction in instructions:
        n_words = len(instruction.text.split())
        first = int(_generator(seed, "unrelated", instruction).integers(len(_NEUTRAL_TEXTS)))
        texts = (_neutral_text((first + k) % len(_NEUTRAL_TEXTS), n_words) for k in range(len(_NEUTRAL_TEXTS)))
        text = next((text for text in texts if text not in used), None)
        if text is None:
            raise UsageError(
                f"There are {len(_NEUTRAL_TEXTS)} neutral texts of {n_words} words, but more instructions of this "
                "length; leave some of them or the null instructions 'unrelated' out."
            )
        used.add(text)
        yield Instruction(
            f"{instruction.key}unrelated", f"as long as {instruction.name}, about nothing shown", text, NULL_GROUP
        )


def _neutral_text(number: int, n_words: int) -> str:
    """Return a neutral text of so many words; its list is repeated where it is too short."""
    head, items = _NEUTRAL_TEXTS[number]
    listed = [f"{item}," for item in items.split(", ")]
    words = [*head.split(), *(listed * math.ceil(n_words / len(listed)))][:n_words]
    return " ".join(words).removesuffix(",") + "."
