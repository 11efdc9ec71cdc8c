"""How numbers are said, in the terminal and in the report. In: numbers. Out: short text."""

from __future__ import annotations

import math
from collections.abc import Sequence

ABSENT = "\N{EN DASH}"
BARS = "▁▂▃▄▅▆▇█"


def count(value: float | None) -> str:
    """A whole number with separators: 41,235."""
    return ABSENT if value is None or not math.isfinite(value) else f"{value:,.0f}"


def exact(value: float | None) -> str:
    """A difference: ``0.0`` only for zero itself, so that nothing small can pass for it."""
    if value is None:
        return ABSENT
    return "0.0" if value == 0 else f"{value:.3g}"


def fixed(value: float | None, digits: int = 3) -> str:
    """A measured number; what would round to zero is shown by its exponent, and NaN is shown as it is."""
    if value is None:
        return ABSENT
    if not math.isfinite(value):
        return str(value)
    if value != 0 and abs(value) < 0.5 * 10**-digits:
        return f"{value:.1e}"
    return f"{value:,.{digits}f}"


def duration(seconds: float | None) -> str:
    """A length of time in words: 4.9 s, 3 min 12 s, 2 h 05 min."""
    if seconds is None or not math.isfinite(seconds):
        return ABSENT
    if seconds < 0.995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def clock(seconds: float | None) -> str:
    """A length of time as on a clock: 1:50, 2:05:00."""
    if seconds is None or not math.isfinite(seconds):
        return ABSENT
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def sparkline(values: Sequence[float | None], width: int) -> str:
    """The last `width` values as bars from the lowest to the highest; what was not measured is a gap."""
    shown = list(values)[-max(width, 0) :] if width > 0 else []
    known = [value for value in shown if value is not None and math.isfinite(value)]
    if not known:
        return ""
    low, span = min(known) / 2, (max(known) / 2 - min(known) / 2) or 1.0  # halves, so that no difference overflows
    levels = [None if v is None or not math.isfinite(v) else int((v / 2 - low) / span * len(BARS)) for v in shown]
    return "".join(" " if level is None else BARS[min(level, len(BARS) - 1)] for level in levels)


def wilson(successes: float, trials: float) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion; `trials` >= 1."""
    z = 1.959963984540054
    share, scale = successes / trials, 1 + z * z / trials
    middle = share + z * z / (2 * trials)
    reach = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)
