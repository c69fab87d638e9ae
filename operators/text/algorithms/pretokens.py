"""Cut documents into the pieces that a tokenizer never merges across, and count them."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

from operators.errors import ContractError, SetupError
from operators.text.training import Documents, Progress

_WORD = r"[^\r\n\p{L}\p{N}]?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_NOT_WORDS = rf"\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_CHARACTER = r" ?\p{L}\p{M}*"
_UPPER_JOINED, _LOWER_JOINED = (f"{part[:-1]}\\u200d]" for part in (_UPPER, _LOWER))
_AFTER_APOSTROPHE = rf"(?:['\u2019]{_LOWER}+)?"
_PICTURE = r"\p{Extended_Pictographic}[\U0001F3FB-\U0001F3FF]?[\uFE0F\uFE0E]?"
_NOT_WORDS_OF_WORD_LEVEL = (
    rf"[0-9#*]\uFE0F?\u20E3|[\U0001F1E6-\U0001F1FF]{{2}}|{_PICTURE}(?:\u200d{_PICTURE})*"
    r"| ?(?:[\p{S}\p{P}]\p{M}*){1,16}"
    r"|[^\S\r\n]{0,16}[\r\n]{1,16}|[^\S\r\n]{1,16}(?![^\s\p{N}\p{C}\p{M}])|\s{1,16}"
    r"|\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))|[\p{Z}\p{C}\p{M}]+"
)

PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "gpt4": rf"{_CONTRACTIONS}|{_WORD}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    rf"|{_SPACES}",
    "gpt4o": rf"{_WORD}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_WORD}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|{_NOT_WORDS}",
    "gpt4o_characters": f"{_CHARACTER}|{_NOT_WORDS}",
    "word_level": rf" ?{_UPPER_JOINED}*{_LOWER_JOINED}+{_AFTER_APOSTROPHE}"
    rf"| ?{_UPPER_JOINED}+{_LOWER_JOINED}*{_AFTER_APOSTROPHE}|{_NOT_WORDS_OF_WORD_LEVEL}",
    "word_level_characters": f"{_CHARACTER}|{_NOT_WORDS_OF_WORD_LEVEL}",
    "bpeasy": rf"{_WORD}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",
    "superbpe_words": rf"{_WORD}{_UPPER}*{_LOWER}+|{_WORD}{_UPPER}+{_LOWER}*"
    rf"|{_NOT_WORDS}",
    "superbpe_lines": r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]{2,}[\r\n/]*| +(?!\S)",
    "identity": "",
}
"""Name -> pattern of pieces, in the syntax that Perl, Oniguruma and the package ``regex`` share.

``bpeasy`` is GPT-4's without contractions, ``superbpe_words`` GPT-4o's without them, and
``superbpe_lines`` cuts out only digits, runs of symbols and spaces before the end. ``word_level``
is BoundlessBPE's, with emoji in one piece; ``_characters`` are its patterns for scripts without
spaces. ``identity`` cuts nothing.
"""

Unmatched = Literal["keep", "drop"]
Split = Callable[[str], Sequence[str]]


def splitter(pattern: str, unmatched: Unmatched) -> Split:
    """Return what cuts a text into pieces; empty ones may be among them.

    Args:
        pattern: A name of ``PATTERNS``, or a pattern; "" cuts nothing.
        unmatched: Text between matches is a piece of its own, or is dropped.

    Raises:
        ContractError: it is no pattern.
        SetupError: the package ``regex`` is missing.
    """
    text = PATTERNS.get(pattern, pattern)
    if not text:
        return lambda document: (document,)
    regex = regex_library()
    try:
        compiled = regex.compile(text)
    except regex.error as error:
        raise ContractError(
            f"pattern {pattern!r}: {error}",
            hint=f"write a pattern of the package regex, or one of {', '.join(PATTERNS)}",
        ) from None
    if unmatched == "drop":
        if compiled.groups:
            return lambda document: [match[0] for match in compiled.finditer(document)]
        found: Split = compiled.findall
        return found
    if compiled.groups:
        return lambda document: _pieces(compiled, document)
    with_matches: Split = regex.compile(f"({text})").split
    return with_matches


def count_pieces(
    documents: Documents, split: Split, progress: Progress, *, by_line: bool = False
) -> Counter[bytes]:
    """Return how often each piece stands in the documents, as UTF-8.

    Args:
        documents: The documents.
        split: What cuts them.
        progress: Told how many documents are done.
        by_line: Cut after every line feed first.
    """
    counts: Counter[str] = Counter()
    done = 0
    for texts in documents():
        for text in texts.to_pylist():
            if by_line:
                *lines, last = text.split("\n")
                for line in lines:
                    counts.update(split(line + "\n"))
                counts.update(split(last))
            else:
                counts.update(split(text))
        done += len(texts)
        progress("counting pieces", done, 0)
    return Counter({piece.encode(): count for piece, count in counts.items() if piece})


def _pieces(compiled: Any, document: str) -> list[str]:
    pieces, end = [], 0
    for match in compiled.finditer(document):
        pieces += [document[end : match.start()], match[0]]
        end = match.end()
    return [*pieces, document[end:]]


def regex_library() -> Any:
    """Import the package ``regex``."""
    try:
        import regex
    except ImportError:
        raise SetupError(
            "the package regex is not installed", hint="pip install 'tokenmill[text]'"
        ) from None
    return regex
