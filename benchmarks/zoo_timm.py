"""One model for each family of timm, the smallest where there is a choice."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_FAMILIES = """
    bat_resnext26ts beit_base_patch16_224 botnet26t_256 cait_xxs24_224 coat_tiny
    coatnet_nano_rw_224 convmixer_768_32 convnextv2_atto crossvit_tiny_240 cspdarknet53
    cspresnet50 darknet17 davit_tiny deit_tiny_patch16_224 densenet121 dla34 dpn48b
    eca_resnet33ts edgenext_xx_small efficientformer_l1 efficientnet_lite0 efficientvit_b0
    ese_vovnet19b_dw eva02_tiny_patch14_224 fastvit_t8 fbnetc_100 focalnet_tiny_srf gernet_s
    ghostnet_050 ghostnetv2_100 gmlp_ti16_224 halonet26t hardcorenas_a hgnet_tiny hiera_tiny_224
    hrnet_w18_small inception_next_tiny inception_v4 lambda_resnet26t lcnet_035 levit_128s
    mambaout_femto maxvit_pico_rw_256 mixer_s32_224 mnasnet_small mobilenetv4_conv_small
    mobileone_s0 mobilevit_xxs mobilevitv2_050 nextvit_small nf_regnet_b0 nfnet_l0 pit_ti_224
    poolformer_s12 pvt_v2_b0 rdnet_tiny regnetz_005 repghostnet_050 repvgg_a0 repvit_m0_9
    res2net50_26w_4s resmlp_12_224 resnest14d resnet10t resnetblur50 resnetv2_50 rexnet_100
    selecsls42 sequencer2d_s seresnet18 shvit_s1 skresnet18 spnasnet_100 starnet_s1
    swin_tiny_patch4_window7_224 swinv2_cr_tiny_ns_224 tiny_vit_5m_224 tinynet_e twins_svt_small
    vgg11_bn visformer_tiny vit_tiny_patch16_224 volo_d1_224 vovnet39a xception41
    xcit_nano_12_p16_224
"""
NAMES = tuple(_FAMILIES.split())

_SIZES = (64, 96, 128, 160)


def make(name: str) -> tuple[nn.Module, Tensor]:
    """Build a model, and the smallest images that it takes, two of them."""
    import timm

    for size in _SIZES:
        try:  # models with a table of positions are told the size
            model = timm.create_model(name, pretrained=False, img_size=size)
            return model, _accepted(model, size)
        except Exception:  # whatever a model says to a size or an option it does not take
            continue
    model = timm.create_model(name, pretrained=False)
    for size in _SIZES:
        try:
            return model, _accepted(model, size)
        except Exception:
            continue
    return model, _accepted(model, model.default_cfg["input_size"][-1])


def _accepted(model: nn.Module, size: int) -> Tensor:
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        model.eval()(x)
    return x
