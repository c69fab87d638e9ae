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

PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "gpt4": rf"{_CONTRACTIONS}|{_WORD}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    rf"|{_SPACES}",
    "gpt4o": rf"{_WORD}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_WORD}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}",
    "bpeasy": rf"{_WORD}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",
    "superbpe_words": rf"{_WORD}{_UPPER}*{_LOWER}+|{_WORD}{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}",
    "superbpe_lines": r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]{2,}[\r\n/]*| +(?!\S)",
    "identity": "",
}
"""Name -> pattern of pieces, in the syntax that Perl, Oniguruma and the package ``regex`` share.

``bpeasy`` is GPT-4's without contractions, ``superbpe_words`` GPT-4o's without them, and
``superbpe_lines`` cuts out only digits, runs of symbols and spaces before the end; ``identity``
cuts nothing.
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
    regex = _library()
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


def _library() -> Any:
    try:
        import regex
    except ImportError:
        raise SetupError(
            "the package regex is not installed", hint="pip install 'tokenmill[text]'"
        ) from None
    return regex
