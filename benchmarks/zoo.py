"""Networks of the model zoos by name, with small inputs: what the coverage benchmark runs on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import zoo_timm

_SIZES = {"inception_v3": 299, "alexnet": 96, "maxvit_t": 224, "vit_h_14": 56}
_OPTIONS: dict[str, dict[str, Any]] = {
    "inception_v3": {"init_weights": False, "aux_logits": True},
    "googlenet": {"init_weights": False, "aux_logits": True},
}


@dataclass
class Entry:
    """A network and how it is run.

    Attributes:
        model: the network, randomly initialised.
        inputs: arguments of an evaluation.
        training_inputs: arguments of a training pass.
        heads: modules whose raw outputs are compared; empty: the output of the network.
    """

    model: nn.Module
    inputs: tuple[Any, ...]
    training_inputs: tuple[Any, ...]
    heads: tuple[str, ...] = ()


def names(family: str) -> list[str]:
    """All models of a family: classification, segmentation, video, detection; or those of timm."""
    if family == "timm":
        return list(zoo_timm.NAMES)
    import torchvision

    module = torchvision.models
    if family != "classification":
        module = getattr(module, family)
    return [n for n in torchvision.models.list_models(module=module) if "quantized" not in n]


def make(family: str, name: str) -> Entry:
    """Build a network with fixed random weights and an example input."""
    torch.manual_seed(0)
    if family == "timm":
        model, x = zoo_timm.make(name)
        return Entry(model, (x,), (x,))
    if family == "detection":
        return _detector(name)
    import torchvision

    options = dict(_OPTIONS.get(name, {}))
    size = _SIZES.get(name, 64)
    if name.startswith("vit"):
        options["image_size"] = size
    if family == "segmentation":
        options |= {"weights_backbone": None, "aux_loss": name != "lraspp_mobilenet_v3_large"}
        if name.startswith("lraspp"):
            del options["aux_loss"]
    with _small_mvit(size):
        model = torchvision.models.get_model(name, weights=None, **options)
    x = _clip(name, size) if family == "video" else torch.randn(2, 3, size, size)
    return Entry(model, (x,), (x,))


@contextmanager
def _small_mvit(size: int) -> Iterator[None]:
    """Build MViT for short and small clips: its makers have the size of a clip written in."""
    from torchvision.models.video import mvit

    made = mvit._mvit
    smaller = {"spatial_size": (size, size), "temporal_size": 8}
    mvit._mvit = lambda **options: made(**{**options, **smaller})
    try:
        yield
    finally:
        mvit._mvit = made


def _clip(name: str, size: int) -> Tensor:
    if name == "s3d":  # made for one size
        return torch.randn(1, 3, 16, 224, 224)
    return torch.randn(2, 3, 16 if name.startswith("swin3d") else 8, size, size)


_HEADS = {
    "retinanet": ("head",),
    "fcos": ("head",),
    "ssd": ("head",),
    "fasterrcnn": ("rpn.head", "roi_heads.box_predictor"),
    "maskrcnn": ("rpn.head", "roi_heads.box_predictor", "roi_heads.mask_predictor"),
    "keypointrcnn": ("rpn.head", "roi_heads.box_predictor", "roi_heads.keypoint_predictor"),
}


def _detector(name: str) -> Entry:
    """A detector that keeps all its proposals, so that their number depends on no value."""
    import torchvision

    kind = name.split("_")[0]
    heads = next(heads for prefix, heads in _HEADS.items() if kind.startswith(prefix))
    options: dict[str, Any] = {"weights": None, "weights_backbone": None}
    if "rcnn" in kind:
        options |= {"rpn_nms_thresh": 1.0, "rpn_post_nms_top_n_test": 20, "min_size": 128}
        options |= {"rpn_pre_nms_top_n_test": 20, "box_score_thresh": -1.0, "box_nms_thresh": 1.0}
        options |= {"box_detections_per_img": 8, "max_size": 160}
        options |= {"rpn_post_nms_top_n_train": 20, "box_batch_size_per_image": 16}
    elif not kind.startswith("ssd"):
        options |= {"min_size": 128, "max_size": 160}
    model = torchvision.models.get_model(name, **options)
    if "rcnn" in kind:
        model.rpn.min_size = -1.0  # boxes of no size are proposals like others
        for part in (model.rpn, model.roi_heads):
            part.box_coder.weights = (1e6,) * 4  # boxes stay where anchors are: none is empty
    images = [torch.rand(3, 128, 128), torch.rand(3, 128, 128)]
    box = torch.tensor([[10.0, 10.0, 90.0, 100.0], [30.0, 40.0, 120.0, 120.0]])
    target: dict[str, Tensor] = {"boxes": box, "labels": torch.tensor([1, 2])}
    if kind == "maskrcnn":
        target["masks"] = (torch.rand(2, 128, 128) > 0.5).to(torch.uint8)
    if kind == "keypointrcnn":
        target["labels"] = torch.tensor([1, 1])
        target["keypoints"] = torch.rand(2, 17, 3) * 40 + 40
        target["keypoints"][..., 2] = 1
    return Entry(model, (images,), (images, [dict(target), dict(target)]), heads)
