"""Plots of the tokenizer report, on one page."""

import io
import textwrap
from collections.abc import Sequence
from typing import Any

from pipeline.errors import SetupError, SpecError
from pipeline.report.tables import size
from pipeline.report.tokenizer_report import DIGIT_CLASSES, MAX_LENGTH, TokenizerFigures

FORMATS = ("png", "svg", "pdf")

_COLORS = ("#2a6f97", "#e07a3f", "#5a9e6f", "#a05195", "#c9a227", "#7d8597", "#d1495b", "#3d405b")
_SHADES = ("#1d4e6b", "#2a6f97", "#61a5c2", "#a9d6e5", "#c8c8c8")
_MAX_GROUPS = 24


def check_format(path: str) -> str:
    """Return the format that a file's name asks for.

    Raises:
        SpecError: it asks for none of them.
    """
    found = path.rsplit(".", 1)[-1].lower()
    if found not in FORMATS:
        raise SpecError(
            f"plots: {path}: unknown format", hint=f"end the name in .{', .'.join(FORMATS)}"
        )
    return found


def draw(tokenizers: Sequence[TokenizerFigures], format_: str) -> bytes:
    """Return a page of plots: length, ranks, token lengths, digits, groups, damage.

    Args:
        tokenizers: Their figures.
        format_: One of ``FORMATS``.

    Raises:
        SetupError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError:
        raise SetupError(
            "plots: the package matplotlib is not installed", hint="pip install 'tokenmill[plots]'"
        ) from None
    panels = [_bytes_a_token, _efficiency, _ranks, _lengths]
    if any(each.digit_shares for each in tokenizers):
        panels.append(_digits)
    if any(each.robustness for each in tokenizers):
        panels.append(_damage)
    has_groups = any(len(each.groups) > 1 for each in tokenizers)
    num_rows = -(-len(panels) // 2) + has_groups
    page = Figure(figsize=(13, 0.8 + 3.9 * num_rows), layout="constrained")
    grid = page.add_gridspec(num_rows, 2)
    for place, panel in enumerate(panels):
        is_alone = place % 2 == 0 and place == len(panels) - 1
        axes = page.add_subplot(grid[place // 2, slice(None) if is_alone else place % 2])
        _plain(axes)
        panel(axes, tokenizers)
    if has_groups:
        axes = page.add_subplot(grid[num_rows - 1, :])
        _plain(axes)
        _groups(axes, tokenizers)
    samples = dict.fromkeys(
        f"{each.source}: {each.documents:,} documents, {size(each.bytes)}" for each in tokenizers
    )
    page.suptitle("; ".join(samples))
    if len(tokenizers) > 1:
        patches = [Patch(color=_color(place), label=t.label) for place, t in enumerate(tokenizers)]
        page.legend(handles=patches, loc="outside lower center", ncols=3, frameon=False)
    out = io.BytesIO()
    page.savefig(out, format=format_, dpi=110)
    return out.getvalue()


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=2, labelsize=9)


def _title(axes: Any, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=11, fontweight="bold")


def _wrapped(label: str) -> str:
    """Return a label in lines of a width that leaves room for the plot."""
    return "\n".join(textwrap.wrap(label.replace("/", "/ "), 20)).replace("/ ", "/")


def _top(shares: Sequence[Sequence[float]]) -> float:
    """Return the percentage at the top: that of tokenizers of bytes would flatten the others."""
    highest = [max(each) for each in shares if each[0] < 0.99]
    return 110 * max([*highest, 0.01]) if highest else 110.0


def _color(place: int) -> str:
    return _COLORS[place % len(_COLORS)]


def _bars(
    axes: Any, tokenizers: Sequence[TokenizerFigures], values: Sequence[float], *, named: bool
) -> None:
    places = range(len(tokenizers))
    bars = axes.barh(places, values, color=[_color(place) for place in places], height=0.65)
    axes.bar_label(bars, fmt="{:.3g}", padding=3, fontsize=9)
    axes.set_yticks(places, [_wrapped(each.label) if named else "" for each in tokenizers])
    axes.invert_yaxis()
    axes.margins(x=0.12)


def _bytes_a_token(axes: Any, tokenizers: Sequence[TokenizerFigures]) -> None:
    _bars(axes, tokenizers, [each.bytes_per_token or 0.0 for each in tokenizers], named=True)
    _title(axes, "Bytes a token")


def _efficiency(axes: Any, tokenizers: Sequence[TokenizerFigures]) -> None:
    _bars(axes, tokenizers, [each.renyi_efficiency or 0.0 for each in tokenizers], named=False)
    _title(axes, "Rényi efficiency of order 2.5")


def _ranks(axes: Any, tokenizers: Sequence[TokenizerFigures]) -> None:
    for place, each in enumerate(tokenizers):
        if each.curve:
            ranks, shares = zip(*each.curve, strict=True)
            axes.loglog(ranks, shares, color=_color(place), label=each.label)
    axes.set_xlabel("rank of the id", fontsize=9)
    _title(axes, "Share of tokens, by rank")


def _lengths(axes: Any, tokenizers: Sequence[TokenizerFigures]) -> None:
    for place, each in enumerate(tokenizers):
        if each.length_shares is not None:
            axes.plot(
                range(1, MAX_LENGTH + 1),
                [100 * share for share in each.length_shares],
                color=_color(place),
                marker=".",
                label=each.label,
            )
    ticks = [1, *range(4, MAX_LENGTH + 1, 4)]
    axes.set_xticks(ticks, [*map(str, ticks[:-1]), f"{MAX_LENGTH}+"])
    axes.set_xlabel("bytes of the token", fontsize=9)
    axes.set_ylabel("% of tokens", fontsize=9)
    axes.set_ylim(0, _top([each.length_shares for each in tokenizers if each.length_shares]))
    _title(axes, "Lengths of tokens")


def _digits(axes: Any, tokenizers: Sequence[TokenizerFigures]) -> None:
    known = [each for each in tokenizers if each.digit_shares]
    left = [0.0] * len(known)
    for name, color in zip(DIGIT_CLASSES, _SHADES, strict=True):
        shares = [100 * (each.digit_shares or {})[name] for each in known]
        axes.barh(range(len(known)), shares, left=left, color=color, label=name, height=0.65)
        left = [a + b for a, b in zip(left, shares, strict=True)]
    axes.set_yticks(range(len(known)), [_wrapped(each.label) for each in known])
    axes.invert_yaxis()
    axes.set_xlabel("% of digits", fontsize=9)
    axes.set_xlim(0, 100)
    axes.legend(
        frameon=False,
        fontsize=8,
        ncols=len(DIGIT_CLASSES),
        loc="upper left",
        bbox_to_anchor=(-0.02, -0.16),
        columnspacing=1.0,
        handlelength=1.0,
    )
    _title(axes, "Digits, by the digits of their token")


def _damage(axes: Any, tokenizers: Sequence[TokenizerFigures]) -> None:
    names = list(dict.fromkeys(name for each in tokenizers for name in each.robustness))
    width = 0.8 / len(tokenizers)
    for place, each in enumerate(tokenizers):
        values = [each.robustness[name].tokens if name in each.robustness else 0 for name in names]
        places = [i + (place - (len(tokenizers) - 1) / 2) * width for i in range(len(names))]
        axes.bar(places, values, width=width * 0.92, color=_color(place))
    axes.axhline(1.0, color="#444444", linewidth=0.8)
    axes.set_xticks(range(len(names)), [name.replace(" ", "\n", 1) for name in names])
    _title(axes, "Damaged text: times as many tokens a byte")


def _groups(axes: Any, tokenizers: Sequence[TokenizerFigures]) -> None:
    names = list(dict.fromkeys(name for each in tokenizers for name in each.groups))[:_MAX_GROUPS]
    width = 0.8 / len(tokenizers)
    for place, each in enumerate(tokenizers):
        found = [each.groups.get(name) for name in names]
        values = [(one.premium_per_character or 0.0) if one is not None else 0.0 for one in found]
        places = [i + (place - (len(tokenizers) - 1) / 2) * width for i in range(len(names))]
        axes.bar(places, values, width=width * 0.92, color=_color(place), label=each.label)
    axes.axhline(1.0, color="#444444", linewidth=0.8)
    turn = 30 if len(names) > 8 else 0
    axes.set_xticks(range(len(names)), names, rotation=turn, ha="right" if turn else "center")
    references = {each.reference_group for each in tokenizers}
    of = references.pop() if len(references) == 1 else "the cheapest"
    _title(axes, f"Premium: tokens a character, by those of {of}")
