"""A transformer of torch's own layers through a fit: searched, cut, saved and loaded again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_slimga import load_pruned
from lightning_slimga.surgery.attention import PrunedMultiheadAttention
from tests.fits.small_fit import Net, assert_equal, assert_optimized, fitted, prune, trainer


class Attentive(Net):
    """The pixels of an image are tokens; one encoder layer and a head."""

    def __init__(self) -> None:
        super().__init__(optimizer="adamw")
        del self.body, self.head
        self.embed = nn.Linear(2, 8)
        self.layer = nn.TransformerEncoderLayer(8, 4, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x.flatten(2).transpose(1, 2))).mean(1))


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_heads_go_inside_a_fit_and_stay_away_after_loading(tmp_path: Path) -> None:
    callback = prune(budget={"params": 0.5})
    last = ModelCheckpoint(tmp_path, save_last=True)
    fit, module = fitted(Attentive(), callback, last)
    assert_optimized(fit, module)
    attention = module.layer.self_attn
    before, after = callback.plan.summary["layers"]["layer.self_attn"]
    assert (before, attention.num_heads) == (4, after)
    assert after < before  # with all heads the rest is too large already
    assert sum(p.numel() for p in module.parameters()) == callback.plan.summary["params"][1]

    loaded = load_pruned(Attentive, tmp_path / "last.ckpt")
    assert_equal(loaded, module)
    assert isinstance(loaded.layer.self_attn, PrunedMultiheadAttention)
    x = torch.randn(3, 2, 6, 6)
    with torch.inference_mode():
        assert torch.equal(loaded.eval()(x), module.eval()(x))

    resumed = Attentive()
    again = trainer(prune(budget={"params": 0.5}), max_epochs=3)
    again.fit(resumed, ckpt_path=tmp_path / "last.ckpt")
    assert_optimized(again, resumed)
    assert resumed.layer.self_attn.num_heads == after
