"""Which form of a shared id is meant: the rules of the hybrid Turkish tokenizer's decoder.

Several forms of a root or suffix share one id (kitap and kitab-; lar and ler). The forms of an id
stand in the order of the dictionary, and the sounds around it say which one is written. Numbers of
ids and forms are those of the published dictionaries (https://arxiv.org/abs/2508.14292).
"""

# ruff: noqa: RUF001, RUF002, RUF003 - Turkish letters

from collections.abc import Mapping, Sequence

UPPERCASE, UNKNOWN = 0, 1
FIRST_SUFFIX = 20_000

_VOWELS = "aeıioöuüâ"
_FRONT = "eiöü"
_HARD = "fstkçşhp"
_FRONT_IN_SPITE_OF_SPELLING = ("saat", "kilovatsaat", "ziraat", "itaat", "istikbal")
_UNKNOWN_TEXT, _NO_SUCH_ID_TEXT = "▁u▁", "▁"


def text_of_ids(ids: Sequence[int], forms: Mapping[int, Sequence[str]]) -> str:
    """Return the text that ids stand for, each in the form that its neighbours ask for.

    Args:
        ids: Of one document.
        forms: Id -> its forms, in the order of the dictionary.
    """
    parts: list[str] = []
    skip = False
    for i, token in enumerate(ids):
        if skip:
            skip = False
        elif token == UPPERCASE and i + 1 < len(ids):
            parts.append(_first_form(ids, i + 1, forms).capitalize())
            skip = True
        elif token == UNKNOWN:
            parts.append(_UNKNOWN_TEXT)
        elif token not in forms:
            parts.append(_NO_SUCH_ID_TEXT)
        elif len(forms[token]) == 1:
            parts.append(forms[token][0])
        else:
            following = _first_form(ids, i + 1, forms) if i + 1 < len(ids) else None
            if token < FIRST_SUFFIX:
                form = _root_form(token, following, ids[i + 1] if i + 1 < len(ids) else None)
            else:
                before = next((part for part in reversed(parts) if part.isalpha()), "")
                form = _suffix_form(token, before, following)
            parts.append(forms[token][form] if form < len(forms[token]) else forms[token][0])
    return "".join(parts)


def _root_form(token: int, following: str | None, next_id: int | None) -> int:
    if following is None:
        return 0
    if 100 <= token < 2080:
        if _starts_with_vowel(following):
            return 1
        return 2 if token <= 110 and next_id == 20_034 else 0
    if 2080 <= token < 2315:
        return 1 if next_id == 20_041 else 0
    return 0


def _suffix_form(token: int, before: str, following: str | None) -> int:
    front, hard = _is_front(before), before[-1:] in tuple(_HARD)
    harmony = _harmony(before)
    vowel_follows = following is not None and _starts_with_vowel(following)
    if token < 20_013:
        return int(front)
    if token < 20_023:
        return harmony
    if token == 20_023:  # la le yla yle
        ends_word = following is None or following.isspace()
        return 2 * (_ends_with_vowel(before) and ends_word) + front
    if token <= 20_025:  # da de ta te, dan den tan ten
        return 2 * hard + front
    if token <= 20_028:  # dı di du dü tı ti tu tü
        return harmony + 4 * hard
    if token > 20_032 or (token != 20_032 and following is None):
        return 0
    if token == 20_029:  # lık lik luk lük lığ ...
        return harmony + 4 * vowel_follows
    if token == 20_030:  # cık ... çık ... cığ ... çığ ...
        return harmony + 4 * hard + 8 * vowel_follows
    if token == 20_031:  # mak mek may mey
        return front + 2 * vowel_follows
    return front + 2 * vowel_follows + 4 * _ends_with_vowel(before)  # acak ecek acağ eceğ yacak ...


def _first_form(ids: Sequence[int], position: int, forms: Mapping[int, Sequence[str]]) -> str:
    found = forms.get(ids[position])
    return found[0] if found else ""


def _starts_with_vowel(text: str) -> bool:
    return text[:1] in tuple(_VOWELS)


def _ends_with_vowel(text: str) -> bool:
    return text[-1:] in tuple(_VOWELS)


def _last_vowel(text: str) -> str:
    return next((char for char in reversed(text) if char in _VOWELS), "")


def _is_front(text: str) -> bool:
    return text in _FRONT_IN_SPITE_OF_SPELLING or _last_vowel(text) in tuple(_FRONT)


def _harmony(text: str) -> int:
    """Return the position among four forms of a suffix: those with ı, i, u and ü."""
    vowel = _last_vowel(text)
    for position, vowels in enumerate(("aıâ", "ei", "ou")):
        if vowel and vowel in vowels:
            return position
    return 3
