"""Cut text where its writing system changes, as BoundlessBPE's pretokenizer does."""

from collections.abc import Sequence
from functools import cache

import numpy as np

from operators.errors import ContractError
from operators.text.algorithms.pretokens import Split, regex_library

_COMMON, _INHERITED = 0, 1
_NAMES = """
Latin Bopomofo Greek Coptic Cyrillic Armenian Hebrew Arabic Syriac Thaana Nko Samaritan Mandaic
Devanagari Bengali Gurmukhi Gujarati Oriya Tamil Telugu Kannada Malayalam Sinhala Thai Lao Tibetan
Myanmar Georgian Hangul Ethiopic Cherokee Canadian_Aboriginal Ogham Runic Tagalog Hanunoo Buhid
Tagbanwa Khmer Mongolian Limbu Tai_Le New_Tai_Lue Buginese Tai_Tham Balinese Sundanese Batak Lepcha
Ol_Chiki Braille Glagolitic Tifinagh Han Hiragana Katakana Yi Lisu Vai Bamum Syloti_Nagri Phags_Pa
Saurashtra Kayah_Li Rejang Javanese Cham Tai_Viet Meetei_Mayek Linear_B Lycian Carian Old_Italic
Gothic Old_Permic Ugaritic Old_Persian Deseret Shavian Osmanya Osage Elbasan Caucasian_Albanian
Vithkuqi Todhri Linear_A Cypriot Imperial_Aramaic Palmyrene Nabataean Hatran Phoenician Lydian
Sidetic Meroitic_Hieroglyphs Meroitic_Cursive Kharoshthi Old_South_Arabian Old_North_Arabian
Manichaean Avestan Inscriptional_Parthian Inscriptional_Pahlavi Psalter_Pahlavi Old_Turkic
Old_Hungarian Hanifi_Rohingya Garay Yezidi Old_Sogdian Sogdian Old_Uyghur Chorasmian Elymaic Brahmi
Kaithi Sora_Sompeng Chakma Mahajani Sharada Khojki Multani Khudawadi Grantha Tulu_Tigalari Newa
Tirhuta Siddham Modi Takri Ahom Dogra Warang_Citi Dives_Akuru Nandinagari Zanabazar_Square Soyombo
Pau_Cin_Hau Sunuwar Bhaiksuki Marchen Masaram_Gondi Gunjala_Gondi Tolong_Siki Makasar Kawi Cuneiform
Cypro_Minoan Egyptian_Hieroglyphs Anatolian_Hieroglyphs Gurung_Khema Mro Tangsa Bassa_Vah
Pahawh_Hmong Kirat_Rai Medefaidrin Beria_Erfe Miao Tangut Nushu Khitan_Small_Script Duployan
SignWriting Nyiakeng_Puachue_Hmong Toto Wancho Nag_Mundari Ol_Onal Tai_Yo Mende_Kikakui Adlam
""".split()  # noqa: SIM905 - as one reads it
_FIRST_REAL = 2


def script_splitter(main: Split, special: Split, scripts: Sequence[str]) -> Split:
    """Return what cuts a text into runs of one script, and those into pieces.

    A character of another script ends a run behind its last character that is not common to all
    scripts; what is common and follows goes to the next run.

    Args:
        main: What cuts runs of most scripts.
        special: What cuts runs of the scripts that are named.
        scripts: Their names in Unicode.

    Raises:
        ContractError: there is no such script.
    """
    unknown = sorted(set(scripts) - set(_NAMES))
    if unknown:
        raise ContractError(
            f"there is no script {unknown[0]!r}", hint=f"write it as Unicode does: {_NAMES[:9]} ..."
        )
    chosen = {_FIRST_REAL + _NAMES.index(name) for name in scripts}

    def split(text: str) -> list[str]:
        if text.isascii():
            return list(main(text))
        pieces: list[str] = []
        for run, script in _runs(text):
            pieces += (special if script in chosen else main)(run)
        return pieces

    return split


def _runs(text: str) -> list[tuple[str, int]]:
    """Return runs of one script, and its number (of the last character that has one)."""
    characters = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    scripts = _table()[characters]
    real = np.flatnonzero(scripts >= _FIRST_REAL)
    if not len(real):
        return [(text, _COMMON)]
    changes = np.flatnonzero(np.diff(scripts[real]))
    not_common = np.flatnonzero(scripts != _COMMON)
    before = not_common[np.searchsorted(not_common, real[changes + 1]) - 1]
    ends = [*(before + 1).tolist(), len(text)]
    names = scripts[real[[*changes, len(real) - 1]]].tolist()
    starts = [0, *ends[:-1]]
    return [
        (text[start:end], script) for start, end, script in zip(starts, ends, names, strict=True)
    ]


@cache
def _table() -> np.ndarray:
    """Return uint8 [all code points]: 0 is common or unknown, 1 inherited, then ``_NAMES``."""
    regex = regex_library()
    table = np.full(0x110000, _COMMON, np.uint8)
    blocks = [range(0xD800), range(0xE000, 0x33500), range(0xE0000, 0xE0200)]
    text = "".join(map(chr, (code for block in blocks for code in block)))
    codes = np.concatenate([np.array(block) for block in blocks])
    for number, name in enumerate(["Inherited", *_NAMES], start=_INHERITED):
        for match in regex.compile(rf"\p{{Script={name}}}+").finditer(text):
            table[codes[match.start() : match.end()]] = number
    return table
