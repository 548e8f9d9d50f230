from __future__ import annotations

from typing import Any

from benchmarks.coverage_table import document, line

RIGHT = {
    "difference": 1e-16,
    "exact": True,
    "macs": True,
    "left": 0.25,
    "reach": 0.97,
    "analysis": 1.5,
    "apply": 0.5,
    "memory": 0.1,
    "layers": 7,
}


def peer(seconds: float) -> dict[str, Any]:
    return {"left": 0.3, "seconds": seconds, "memory": 0.2}


def test_summary_counts_what_is_exact_and_names_what_is_slow() -> None:
    text = document(
        {
            "classification": {
                "resnet18": {"slimga": RIGHT, "torch_pruning": peer(1.0)},
                "resnet50": {"slimga": {**RIGHT, "reach": 0.91}, "torch_pruning": peer(9.0)},
                "vgg11": {"slimga": {**RIGHT, "macs": False}, "torch_pruning": {"error": "no"}},
            },
            "video": {"r3d_18": {"slimga": {"error": "not done | after 600 s"}}},
        }
    )
    assert "exact: 2 of 4 models; classification 2 of 3; video 0 of 1." in text
    assert "Torch-Pruning runs on 2 of 3 models; over those it takes 10 s" in text
    assert "this package 4 s (0.40)" in text
    assert "more than 0.5 s slower than Torch-Pruning: `resnet18` (+1.0 s)." in text
    assert "Torch-Pruning fails on: `vgg11`." in text
    assert "| resnet | 2 | 0.910 (`resnet50`) |" in text
    assert "not done / after 600 s" in text


def test_a_line_says_whether_a_model_is_right() -> None:
    assert line(RIGHT).startswith("exact")
    assert line({**RIGHT, "macs": False}).startswith("WRONG")
    assert line({"error": "out of memory"}) == "FAILED out of memory"
    assert line(peer(2.0)) == "left 0.30, 2.00 s, 0.20 GB"


def test_timm_has_a_section_of_its_own() -> None:
    text = document({"timm": {"resnet10t": {"slimga": RIGHT}}})
    assert "## timm" in text
    assert "exact: 1 of 1 models." in text.split("## timm")[1]
