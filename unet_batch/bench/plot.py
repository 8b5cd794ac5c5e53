"""The bars of a comparison, as a PNG."""

from __future__ import annotations

import io
from importlib.util import find_spec

from unet_batch.bench.compare import Comparison
from unet_batch.bench.measure import LEVELS
from unet_batch.bench.report import TITLES, figures, label
from unet_batch.errors import UsageError

_COLOUR, _AUTO = "#8fa8d0", "#2a5db0"


def require_matplotlib() -> None:
    """Raise UsageError where it is not installed."""
    if find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib", hint='pip install "unet-batch[train]"')


def draw(comparison: Comparison) -> bytes:
    """Pictures a second, a panel for each level and a bar for each backend; what `auto` takes is darker.

    Lines on the bars go from the slowest round to the fastest.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    entries = comparison.entries
    figure = Figure(figsize=(9, 1.2 + 3 * (0.45 + 0.32 * len(entries))), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    shown_at = [[entry for entry in entries if level in entry.levels] for level in LEVELS]
    rows = figure.subplots(len(LEVELS), 1, height_ratios=[0.5 + max(1, len(shown)) for shown in shown_at])
    for axes, level, shown in zip(rows, LEVELS, shown_at, strict=True):
        for place, entry in enumerate(shown):
            found = figures(entry, level, entries[0])
            if found is None:
                continue
            spread = [[found.rate - min(found.rates)], [max(found.rates) - found.rate]]
            axes.barh(
                place,
                found.rate,
                xerr=spread,
                height=0.7,
                color=_AUTO if entry.is_auto else _COLOUR,
                error_kw={"ecolor": "#333333", "elinewidth": 1},
            )
            axes.annotate(
                f"{found.rate:.3g}" + (f"   x{found.ratio.median:.2f}" if found.ratio else ""),
                (max(found.rates), place),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        axes.set_yticks(range(len(shown)), [label(comparison, entry) for entry in shown], fontsize=9)
        axes.invert_yaxis()
        axes.margins(x=0.18)
        axes.set_xlim(left=0)
        axes.set_title(TITLES[level], loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
    axes.set_xlabel("pictures/s")
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()
