"""What the plugin can do for a network: every layer, and for what cannot go the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_slimga.text import count, frozen_by_reason, plain_table

if TYPE_CHECKING:
    from lightning_slimga.surgery.channel_surgery import ChannelSurgery
    from lightning_slimga.surgery.masking import Mask


def describe(surgery: ChannelSurgery) -> str:
    """The report of :func:`inspect` as text; layers that may lose nothing are left to its notes."""
    facts = inspect(surgery)
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


def inspect(surgery: ChannelSurgery) -> dict[str, Any]:
    """Facts about a network as plain data.

    Returns:
        ``channels``, ``macs``, ``params``, ``params_removable`` (share of the parameters that lie
        in layers that may lose channels); ``layers``: name, channels, the fewest that it may keep,
        coupled modules (the network's own parameters by name), share of MACs and parameters that
        its modules hold, γ names; ``frozen``: name, channels, why; ``notes``; ``min_channels`` and
        ``round_to``, as the surgery was made.
    """
    everything = np.ones(surgery.num_channels, dtype=bool)
    counts = surgery.counts(everything)[None]
    macs = surgery.cost.macs.by_module(counts)
    params = surgery.cost.params.by_module(counts)
    total_macs, total_params = max(sum(macs.values()), 1), max(sum(params.values()), 1)
    layers, touched = [], set()
    costs = costs_by_layer(surgery, everything)
    for layer, (layer_macs, layer_params) in zip(surgery.layers, costs, strict=True):
        modules = {name: name.rpartition(".")[0] for name, _ in layer.tensors}
        coupled = dict.fromkeys(module or name for name, module in modules.items())
        fewest = surgery.widths.fewest(layer.num_channels)
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
        "channels": surgery.num_channels,
        "macs": sum(macs.values()),
        "params": sum(params.values()),
        "params_removable": sum(params.get(m, 0) for m in touched) / total_params,
        "layers": layers,
        "frozen": [
            {"name": name.rpartition(".")[0] or name, "channels": channels, "why": why}
            for name, dim, channels, why in surgery.frozen
            if surgery.writes(name, dim) and not why.startswith("position inside")
        ],
        "notes": surgery.notes,
        "min_channels": surgery.widths.min_channels,
        "round_to": surgery.widths.round_to,
    }


def costs_by_layer(surgery: ChannelSurgery, keep: Mask) -> list[tuple[int, int]]:
    """MACs on the example inputs and parameters of the modules that write each layer's channels.

    Args:
        surgery: of the network.
        keep: what is kept, shape (C,).
    """
    counts = surgery.counts(keep)[None]
    costs = [cost.by_module(counts) for cost in (surgery.cost.macs, surgery.cost.params)]
    rows = []
    for layer in surgery.layers:
        tensors = (name for name, dim in layer.tensors if surgery.writes(name, dim))
        writers = {name.rpartition(".")[0] for name in tensors}
        macs, params = (sum(cost.get(one, 0) for one in writers) for cost in costs)
        rows.append((macs, params))
    return rows
