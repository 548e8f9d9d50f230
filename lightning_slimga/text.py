"""Numbers, tables and lists of reasons as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def plain_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, total: bool = False
) -> str:
    """Return an aligned text table: first column to the left, the others to the right.

    Args:
        header: Names of the columns.
        rows: Cells, as many in each row as there are columns.
        total: Set the last row apart by a line.
    """
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    rule = "  ".join("-" * width for width in widths)

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "  ".join([first[0].ljust(first[1]), *(cell.rjust(w) for cell, w in others)])

    body = [line(row) for row in rows]
    if total and body:
        body.insert(-1, rule)
    return "\n".join([line(header), rule, *body])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table: first column to the left, the others to the right."""
    alignment = ["---", *["---:"] * (len(header) - 1)]
    lines = [header, alignment, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def count(number: int) -> str:
    """Return a count of MACs or parameters with three digits and a unit: ``5.72 M``."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            value = number / size
            return f"{value:.{3 - len(str(int(value)))}f} {unit}"
    return str(number)


def amount(limit: float) -> str:
    """Return a limit as a user writes it: ``0.5``, ``200,000``."""
    absolute = limit > 1 and float(limit).is_integer()
    return f"{int(limit):,}" if absolute else f"{limit:,}"


def fraction(before: float, after: float) -> str:
    """Return what is left in percent, or a dash where there was nothing."""
    return f"{after / before:.1%}" if before else "–"


def frozen_by_reason(frozen: Iterable[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """Many tensors usually share few reasons.

    Args:
        frozen: ``(name, reason)`` pairs.

    Returns:
        ``(reason, names without repetition)``, in the order of first appearance.
    """
    names: dict[str, dict[str, None]] = {}
    for name, why in frozen:
        cause = why.split(" (op ")[0]  # the same cause at another place is the same reason
        names.setdefault(cause, {})[name] = None
    return [(why, list(group)) for why, group in names.items()]
