"""The results of the coverage benchmark as a document."""

from __future__ import annotations

import re
from typing import Any

Results = dict[str, dict[str, dict[str, Any]]]
"""Family of the zoo -> name of the model -> tool -> result."""


def line(result: dict[str, Any]) -> str:
    """One result for the terminal."""
    if "error" in result:
        return f"FAILED {result['error']}"
    if "seconds" in result:
        return _peer(result)
    return (
        f"{'exact' if _right(result) else 'WRONG'} {result['difference']:.0e}"
        f" left {result['left']:.2f} in reach {result['reach']:.2f}"
        f" analysis {result['analysis']:.2f} s apply {result['apply']:.2f} s"
        f" +{result['memory']:.2f} GB layers {result['layers']}"
    )


def document(results: Results) -> str:
    """Everything: summaries first, then a table with one row for each model."""
    torchvision = {f: models for f, models in results.items() if f != "timm"}
    parts = [_HEAD, *_summary(torchvision), "", *_families(torchvision), "", _COLUMNS, ""]
    parts += _table(torchvision, peer=True)
    if "timm" in results:
        timm = {"timm": results["timm"]}
        parts += ["", "## timm: one model of each family", "", *_summary(timm), ""]
        parts += _table(timm, peer=False)
    return "\n".join([*parts, ""])


_HEAD = """# Coverage of the model zoos

Written by `python -m benchmarks.coverage --peer` and `python -m benchmarks.coverage --families
timm` (`make bench-coverage`). Half of the removable channels are removed at random. A model is
*exact* when the shrunk network returns what the masked one returns (float64 to 1e-9 relative,
float32 to 1e-5 above 100 M parameters; of detectors the raw outputs of the heads), costs the MACs
that torch's own counter finds, runs in both modes and trains for a step.

## torchvision
"""

_COLUMNS = """*left*: share of the parameters left at that mask. *in reach*: share of the parameters
that the smallest mask removes. *analysis*, *apply*: CPU seconds of one thread in single precision,
analysis with its proof; the quickest of three runs. *memory*: peak beyond the model and its forward
pass during the analysis, in GB. *Torch-Pruning*: version 1.6.1, its own pruning of half of all
channels, seconds and memory taken alike; limits of 600 s and 16 GB for each model. Both tools keep
the memory that they free (`mallopt`), lest the quickest run depend on which sizes the system takes
back, and get it in large pages (`THP_MEM_ALLOC_ENABLE=1`, a setting of torch's): where these
figures were taken, a fresh small page costs 11 microseconds, so that without it the largest ViT
takes 5 s, half of that for pages, and `s3d` 0.7 s more than with Torch-Pruning. CPU seconds, too,
depend on what else the machine does: small differences mean nothing. Torch-Pruning ran where
it raised nothing; whether its networks are right is not judged here."""


def _summary(results: Results) -> list[str]:
    rows = [(f, n, tools) for f, models in results.items() for n, tools in models.items()]
    ours = [(f, n, tools["slimga"]) for f, n, tools in rows if "slimga" in tools]
    lines = [f"- exact: {sum(_right(r) for *_, r in ours)} of {len(ours)} models."]
    for family in results if len(results) > 1 else ():
        some = [r for f, _, r in ours if f == family]
        lines[0] = lines[0].rstrip(".") + f"; {family} {sum(map(_right, some))} of {len(some)}."
    done = [(n, r) for _, n, r in ours if "error" not in r]
    if not done:
        return lines
    slow = max(done, key=lambda item: seconds(item[1]))
    large = max(done, key=lambda item: item[1]["memory"])
    lines.append(
        f"- most time, analysis and surgery together: {seconds(slow[1]):.1f} s (`{slow[0]}`);"
        f" most memory: {large[1]['memory']:.2f} GB (`{large[0]}`)."
    )
    classic = [r for f, _, r in ours if f == "classification" and "error" not in r]
    if classic:
        lines.append(
            f"- of the {len(classic)} classification models: at most"
            f" {max(map(seconds, classic)):.1f} s and {max(r['memory'] for r in classic):.2f} GB."
        )
    return lines + _beside(rows)


def _beside(rows: list[tuple[str, str, dict[str, Any]]]) -> list[str]:
    """Our time beside that of Torch-Pruning over the models where it works."""
    pairs = [(n, t["slimga"], t["torch_pruning"]) for _, n, t in rows if len(t) == 2]
    if not pairs:
        return []
    both = [(n, a, b) for n, a, b in pairs if "error" not in a and "error" not in b]
    failed = [n for n, _, b in pairs if "error" in b]
    mine, theirs = sum(seconds(a) for _, a, _ in both), sum(seconds(b) for *_, b in both)
    slower = [(n, seconds(a) - seconds(b)) for n, a, b in both]
    late = [f"`{n}` (+{d:.1f} s)" for n, d in slower if d > 0.5]
    return [
        f"- Torch-Pruning runs on {len(pairs) - len(failed)} of {len(pairs)} models; over those"
        f" it takes {theirs:.0f} s, and this package {mine:.0f} s ({mine / theirs:.2f}).",
        f"- more than 0.5 s slower than Torch-Pruning: {', '.join(late) or 'none'}.",
        f"- Torch-Pruning fails on: {', '.join(f'`{n}`' for n in failed) or 'none'}.",
    ]


def _families(results: Results) -> list[str]:
    """The smallest share in reach in each family of architectures."""
    found: dict[str, list[tuple[float, str]]] = {}
    for name, tools in results.get("classification", {}).items():
        result = tools.get("slimga", {"error": ""})
        if "error" not in result:
            family = re.split(r"\d|_", name.removeprefix("wide_"))[0]
            found.setdefault(family, []).append((result["reach"], name))
    rows = [
        f"| {family} | {len(some)} | {min(some)[0]:.3f} (`{min(some)[1]}`) |"
        for family, some in sorted(found.items())
    ]
    title = "| classification models | number | smallest share of parameters in reach |"
    return [title, "|---|---|---|", *rows]


def _table(results: Results, *, peer: bool) -> list[str]:
    titles = ["family", "model", "error", "MACs", "left", "in reach", "analysis", "apply", "memory"]
    titles = [*titles, "Torch-Pruning"] if peer else titles[1:]
    rows = [
        _row([family, *cells] if peer else cells)
        for family, models in results.items()
        for cells in (_cells(name, tools, peer=peer) for name, tools in models.items())
    ]
    return [_row(titles), "|" + "---|" * len(titles), *rows]


def _cells(name: str, tools: dict[str, Any], *, peer: bool) -> list[str]:
    result = tools.get("slimga", {"error": "not run"})
    if "error" in result:
        cells = [result["error"], *[""] * 6]
    else:
        cells = [f"{result['difference']:.0e}", "=" if result["macs"] else "differ"]
        cells += [f"{result[key]:.2f}" for key in ("left", "reach", "analysis", "apply", "memory")]
    return [f"`{name}`", *cells, *([_peer(tools.get("torch_pruning"))] if peer else [])]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def _peer(result: dict[str, Any] | None) -> str:
    if result is None:
        return "not run"
    if "error" in result:
        return str(result["error"])
    return f"left {result['left']:.2f}, {result['seconds']:.2f} s, {result['memory']:.2f} GB"


def _right(result: dict[str, Any]) -> bool:
    return "error" not in result and result["exact"] and result["macs"]


def seconds(result: dict[str, Any]) -> float:
    """All the seconds that a tool took for a model."""
    return float(result.get("seconds") or result["analysis"] + result["apply"])
