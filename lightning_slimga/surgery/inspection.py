"""What the plugin can do for a network: every layer, and for what cannot go the reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_slimga.graph.layers import ChannelGraph
from lightning_slimga.surgery.masks import Widths
from lightning_slimga.text import count, frozen_by_reason, plain_table


def describe(facts: dict[str, Any]) -> str:
    """What :func:`inspect` returns as text; layers that may lose nothing are left to its notes."""
    rows = [
        (
            row["name"],
            str(row["channels"]),
            f"{row['macs_share']:.1%}",
            f"{row['params_share']:.1%}",
            "γ" if row["gamma"] else "–",
            ", ".join(row["coupled"][:3]) + (" …" if len(row["coupled"]) > 3 else ""),
        )
        for row in facts["layers"]
        if row["fewest"] < row["channels"]
    ]
    head = ("layer", "channels", "MACs", "parameters", "γ", "coupled with")
    lines = [
        f"{sum(int(row[1]) for row in rows)} removable channels in {len(rows)} layers;"
        f" {count(facts['macs'])} MACs, {count(facts['params'])} parameters,"
        f" {facts['params_removable']:.0%} of them in removable layers",
        plain_table(head, rows, total=False) if rows else "nothing can be removed",
    ]
    if facts["frozen"]:
        lines.append("what cannot go:")
        frozen = [(row["name"], row["why"]) for row in facts["frozen"]]
        lines += [f"  {', '.join(names)}: {why}" for why, names in frozen_by_reason(frozen)]
    lines += [f"note: {note}" for note in facts["notes"]]
    return "\n".join(lines)


def inspect(graph: ChannelGraph, widths: Widths, notes: Sequence[str]) -> dict[str, Any]:
    """Facts about a network as plain data.

    Args:
        graph: its channels.
        widths: how many of them a layer may keep.
        notes: what else is to be known, in words.

    Returns:
        ``channels``, ``macs``, ``params``, ``params_removable`` (share of the parameters that lie
        in layers that may lose channels); ``layers``: name, channels, the fewest that it may keep,
        coupled modules (the network's own parameters by name), share of MACs and parameters that
        its modules hold, γ names; ``frozen``: name, channels, why; ``notes``; ``min_channels`` and
        ``round_to``, as the surgery was made.
    """
    everything = graph.full_counts
    macs = graph.cost.macs.by_module(everything[None])
    params = graph.cost.params.by_module(everything[None])
    total_macs, total_params = max(sum(macs.values()), 1), max(sum(params.values()), 1)
    layers, touched = [], set()
    costs = graph.costs_by_layer(everything)
    for layer, (layer_macs, layer_params) in zip(graph.layers, costs, strict=True):
        modules = {name: name.rpartition(".")[0] for name, _ in layer.tensors}
        coupled = dict.fromkeys(module or name for name, module in modules.items())
        fewest = widths.fewest(layer.num_channels)
        touched |= set(modules.values()) if fewest < layer.num_channels else set()
        layers.append(
            {
                "name": layer.name,
                "channels": layer.num_channels,
                "fewest": fewest,
                "coupled": [name for name in coupled if name != layer.name],
                "macs_share": layer_macs / total_macs,
                "params_share": layer_params / total_params,
                "gamma": list(layer.gamma or ()),
            }
        )
    return {
        "channels": graph.num_channels,
        "macs": sum(macs.values()),
        "params": sum(params.values()),
        "params_removable": sum(params.get(m, 0) for m in touched) / total_params,
        "layers": layers,
        "frozen": [
            {"name": name.rpartition(".")[0] or name, "channels": channels, "why": why}
            for name, dim, channels, why in graph.frozen
            if graph.writes(name, dim) and not why.startswith("position inside")
        ],
        "notes": list(notes),
        "min_channels": widths.min_channels,
        "round_to": widths.round_to,
    }
