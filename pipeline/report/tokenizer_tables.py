"""Tables of the tokenizer report, for the terminal: a column for each tokenizer."""

from collections.abc import Callable, Iterator, Sequence

from rich.table import Table
from rich.text import Text

from pipeline.report.tables import size
from pipeline.report.tokenizer_report import DIGIT_CLASSES, TokenizerFigures

_LONGEST_WIDTH = 34
_MAX_GROUPS = 20

Figure = Callable[[TokenizerFigures], str]


def tokenizer_tables(tokenizers: Sequence[TokenizerFigures]) -> Iterator[Table]:
    """Yield the tables: the corpus, the vocabularies, groups, damaged text, longest tokens."""
    yield _table(tokenizers, "on this sample", _SAMPLE)
    if any(each.digit_shares for each in tokenizers):
        yield _table(tokenizers, "digits in tokens of", _DIGITS)
    known = [each for each in tokenizers if each.vocabulary is not None]
    if known:
        yield _table(known, "vocabulary", _VOCABULARY)
    if any(each.groups for each in tokenizers):
        yield _group_table(tokenizers)
    if any(each.robustness for each in tokenizers):
        yield _damage_table(tokenizers)
    if known:
        yield _longest_table(known)


def tokenizer_notes(tokenizers: Sequence[TokenizerFigures]) -> Iterator[str]:
    """Yield what must be known to read the figures."""
    for each in tokenizers:
        if each.text_is_decoded:
            yield (
                f"{each.label}: the shards hold no text, so the text is what the ids decode to: "
                "what the tokenizer changed or did not know is not seen"
            )
        if each.vocabulary is None:
            yield f"{each.label}: it does not say what its ids stand for, so no figures on pieces"
        if each.used and each.tokens < 10 * each.vocab_size:
            yield (
                f"{each.label}: fewer than 10 tokens for each id, so that used would rise with a "
                "larger --sample"
            )
        if each.refused:
            yield f"{each.label}: {each.refused:,} documents are left out: a tokenizer refuses them"
    if len({each.text_sha256 for each in tokenizers}) > 1:
        yield "these tokenizers were measured on different texts: compare with care"


def _table(tokenizers: Sequence[TokenizerFigures], heading: str, rows: dict[str, Figure]) -> Table:
    table = _empty(heading, tokenizers)
    for name, figure in rows.items():
        cells = [figure(each) for each in tokenizers]
        if any(cells):
            table.add_row(name, *cells)
    return table


def _empty(heading: str, tokenizers: Sequence[TokenizerFigures]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    table.add_column(heading, no_wrap=True)
    for each in tokenizers:
        table.add_column(Text(each.label), justify="right", overflow="fold")
    return table


def _group_table(tokenizers: Sequence[TokenizerFigures]) -> Table:
    references = {each.reference_group for each in tokenizers}
    of = f" (by {references.pop()})" if len(references) == 1 else " (by the cheapest)"
    table = _empty(f"tokens a character{of}", tokenizers)
    names = list(dict.fromkeys(name for each in tokenizers for name in each.groups))
    for name in names[:_MAX_GROUPS]:
        cells = []
        for each in tokenizers:
            found = each.groups.get(name)
            if found is None or found.characters_per_token is None:
                cells.append("")
                continue
            premium = found.premium_per_character
            more = "" if premium is None else f" ({premium:.2f}x)"
            cells.append(f"{1 / found.characters_per_token:.3f}{more}")
        table.add_row(Text(name), *cells)
    if len(names) > _MAX_GROUPS:
        table.add_row(f"... {len(names) - _MAX_GROUPS} more, see --json", style="dim")
    spread = [
        [
            found.premium_per_character
            for found in each.groups.values()
            if found.premium_per_character
        ]
        for each in tokenizers
    ]
    if len(names) > 1:
        cells = [f"{max(part) / min(part):.2f}x" if part else "" for part in spread]
        table.add_row("dearest by cheapest", *cells, style="bold")
    return table


def _damage_table(tokenizers: Sequence[TokenizerFigures]) -> Table:
    table = _empty("damaged text: tokens (ids kept)", tokenizers)
    for name in dict.fromkeys(name for each in tokenizers for name in each.robustness):
        found = [each.robustness.get(name) for each in tokenizers]
        cells = ["" if one is None else f"{one.tokens:.2f}x ({one.kept:.0%})" for one in found]
        table.add_row(name, *cells)
    return table


def _longest_table(tokenizers: Sequence[TokenizerFigures]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for heading in ("tokenizer", "longest in the sample", "longest of all", "unreachable"):
        table.add_column(heading, overflow="fold")
    for each in tokenizers:
        assert each.vocabulary is not None
        lists = (
            each.longest_used,
            each.vocabulary.longest,
            each.vocabulary.unreachable_examples,
        )
        cells = ["\n".join(_shown(text) for _, text in part[:5]) for part in lists]
        table.add_row(Text(each.label), *map(Text, cells))
    return table


def _shown(text: str) -> str:
    shown = repr(text)
    if len(shown) <= _LONGEST_WIDTH:
        return shown
    return f"{shown[: _LONGEST_WIDTH - 16]}... ({len(text):,} long)"


def _number(value: float | None, text: str) -> str:
    return "" if value is None else text.format(value)


def _percent(value: float | None) -> str:
    return (
        "" if value is None else f"{value:.1%}" if value >= 0.001 or not value else f"{value:.0e}"
    )


_SAMPLE: dict[str, Figure] = {
    "documents": lambda t: f"{t.documents:,}",
    "text": lambda t: size(t.bytes),
    "tokens": lambda t: f"{t.tokens:,}",
    "specials": lambda t: f"{t.special_tokens:,}" if t.special_tokens else "",
    "bytes a token": lambda t: _number(t.bytes_per_token, "{:.2f}"),
    "characters a token": lambda t: _number(t.characters_per_token, "{:.2f}"),
    "tokens a word (fertility)": lambda t: _number(t.fertility, "{:.2f}"),
    "words not parted": lambda t: _percent(t.whole_words),
    "tokens by the first's (NSL)": lambda t: _number(t.nsl, "{:.3f}"),
    "ids by text, bytes": lambda t: _percent(t.stored_share),
    "entropy, bits a byte": lambda t: _number(t.entropy_bits_per_byte, "{:.3f}"),
    "Shannon efficiency": lambda t: _number(t.shannon_efficiency, "{:.3f}"),
    "Rényi efficiency (2.5)": lambda t: _number(t.renyi_efficiency, "{:.3f}"),
    "vocabulary": lambda t: f"{t.vocab_size:,}",
    "used": lambda t: f"{t.used:,} ({t.used_share:.1%})",
    "ids that make 90 %": lambda t: f"{t.ids_for_90:,}",
    "single bytes": lambda t: _percent(t.single_byte_share),
    "partial characters": lambda t: _percent(t.partial_utf8_share),
    "unknown": lambda t: _percent(t.unknown_share),
}

_DIGITS: dict[str, Figure] = {
    name: lambda t, name=name: _percent((t.digit_shares or {}).get(name))  # type: ignore[misc]
    for name in DIGIT_CLASSES
}


def _of_vocabulary(figure: Callable[..., int | None]) -> Figure:
    def shown(tokenizer: TokenizerFigures) -> str:
        found = figure(tokenizer.vocabulary)
        return "" if found is None else f"{found:,}"

    return shown


_VOCABULARY: dict[str, Figure] = {
    "ids with text": _of_vocabulary(lambda v: v.with_text),
    "single bytes": _of_vocabulary(lambda v: v.single_byte),
    "partial characters": _of_vocabulary(lambda v: v.partial_utf8),
    "digits alone": _of_vocabulary(lambda v: v.digits),
    "reached by their text": _of_vocabulary(lambda v: v.reached),
    "unreachable": _of_vocabulary(lambda v: v.unreachable),
}
