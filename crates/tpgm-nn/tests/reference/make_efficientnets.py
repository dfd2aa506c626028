"""Writes `efficientnets.safetensors`, what published code computes with networks of inverted residual blocks:
`python make_efficientnets.py`, PyTorch 2.15, torchvision 0.29, timm 1.0, efficientnet-lite-pytorch 0.1.

Keys are as in `make_reference.py`, all computed in f64. Weights are a function of their names, see `uniform`; those of the tiny
networks are stored nevertheless, as a checkpoint. Of the large ones, under `full/`, only logits are: their weights are made anew.
"""

from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision.models as tv
from efficientnet_lite_pytorch import EfficientNet as Package
from efficientnet_lite_pytorch.utils import BlockDecoder, GlobalParams
from safetensors.torch import save_file
from timm.models import efficientnet as timm_efficientnet
from timm.models import mobilenetv3 as timm_mobilenetv3
from timm.models._efficientnet_blocks import SqueezeExcite
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from torch import nn
from torch.nn import functional as F
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig

found = {}


def uniform(name, shape):
    """In -1..1, multiples of 2^-19: output `i` of the SplitMix64 generator that starts at the name's FNV-1a hash."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x100000001B3) % 2**64
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return torch.from_numpy((z >> np.uint64(44)).astype(np.float64) / 2**19 - 1).reshape(shape)


def value(name, shape):
    """A weight, which f32 holds exactly: activations do not die away."""
    x = uniform(name, shape)
    if name.endswith("running_var"):
        return 1 + 0.5 * x
    if len(shape) > 1:
        inputs = int(np.prod(shape[1:]))
        return x * 2.0 ** ((4 - inputs.bit_length()) // 2)
    return 1 + 0.25 * x if name.endswith("weight") else 0.25 * x


def prepare(model):
    model = model.double()
    for module in model.modules():
        # PyTorch's own have a constant of f32 in their gradient.
        match type(module).__name__.lower():
            case "hardsigmoid":
                module.forward = lambda x: F.relu6(x + 3) / 6
            case "hardswish":
                module.forward = lambda x: x * F.relu6(x + 3) / 6
    with torch.no_grad():
        for name, x in list(model.named_parameters()) + list(model.named_buffers()):
            if x.is_floating_point():
                x.copy_(value(name, tuple(x.shape)))
    return model


def pictures(*shape):
    return 2 * uniform("images", shape)


def gradients(model, images, labels):
    """A number of each tensor's gradient, in the order of names: its product with a direction."""
    model.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    params = sorted(model.named_parameters())
    return torch.stack([(x.grad * uniform(f"{name} direction", tuple(x.shape))).sum() for name, x in params])


def record(name, model, norm):
    """`norm` is one whose running statistics are recorded after two batches."""
    prepare(model)
    for key, x in model.state_dict().items():
        found[f"{name}/weights/{key}"] = (x.float() if x.is_floating_point() else x).clone().contiguous()
    images, labels = pictures(3, 3, 37, 50), torch.tensor([2, 0, 3])
    out = {"eval": model.eval()(images), "frozen_gradients": gradients(model, images, labels)}
    for module in model.modules():
        # As in our networks, where it is off unless asked for.
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    out |= {"train": model.train()(images), "train_gradients": gradients(model, images, labels)}
    statistics = model.get_submodule(norm)
    out |= {"running_mean": statistics.running_mean, "running_var": statistics.running_var}
    for key, x in out.items():
        found[f"{name}/{key}"] = x.detach().clone().contiguous()


# The packages' own names, TensorFlow's padding


def package(lite):
    squeeze = "" if lite else "_se0.25"
    blocks = ["r1_k3_s11_e1_i32_o48", "r2_k3_s22_e6_i48_o32", "r2_k5_s22_e3_i32_o64"]
    options = dict(batch_norm_momentum=0.99, batch_norm_epsilon=1e-3, dropout_rate=0.2, drop_connect_rate=0.0)
    sizes = dict(width_coefficient=0.125, depth_coefficient=1.0, depth_divisor=4, num_classes=5)
    model = Package(
        BlockDecoder.decode([block + squeeze for block in blocks]),
        GlobalParams(relu_fn="relu6" if lite else "swish", fix_head_stem=False, **options, **sizes),
    )
    if not lite:
        # Its own memory saving one uses what PyTorch no longer has.
        for module in model.modules():
            if hasattr(module, "_swish"):
                module._swish = nn.SiLU()
    return model

record("package_lite", package(True), "_blocks.1._bn1")
record("package_b", package(False), "_blocks.1._bn1")


# timm


def of_timm(make, arch, act, eps, pad, **options):
    return make(
        block_args=decode_arch_def(arch),
        num_classes=5,
        stem_size=4,
        fix_stem=True,
        act_layer=act,
        pad_type=pad,
        norm_layer=partial(nn.BatchNorm2d, eps=eps),
        round_chs_fn=partial(round_channels, divisor=4),
        **options,
    )

LITE = [["ds_r1_k3_s1_e1_c4"], ["ir_r2_k3_s2_e6_c4"], ["ir_r2_k5_s2_e3_c8"]]
B = [["ds_r1_k3_s1_e1_c4_se0.25"], ["ir_r2_k3_s2_e6_c4_se0.25"], ["ir_r2_k5_s2_e3_c8_se0.25"]]
V3 = [
    ["ds_r1_k3_s2_e1_c4_se0.25_nre"],
    ["ir_r1_k3_s2_e4_c4_nre", "ir_r1_k3_s1_e3_c4_nre"],
    ["ir_r2_k5_s2_e4_c8_se0.25"],
    ["cn_r1_k1_s1_c12"],
]
for tf in [False, True]:
    prefix, how = ("tf_", dict(eps=1e-3, pad="same")) if tf else ("timm_", dict(eps=1e-5, pad=""))
    net = partial(of_timm, timm_efficientnet.EfficientNet, num_features=12)
    record(f"{prefix}lite", net(LITE, nn.ReLU6, **how), "blocks.1.0.bn2")
    record(f"{prefix}b", net(B, nn.SiLU, **how), "blocks.1.0.bn2")
    squeeze = partial(
        SqueezeExcite, gate_layer="hard_sigmoid", force_act_layer=nn.ReLU, rd_round_fn=partial(round_channels, divisor=4)
    )
    net = partial(of_timm, timm_mobilenetv3.MobileNetV3, num_features=16, se_layer=squeeze)
    record(f"{prefix}v3", net(V3, nn.Hardswish, se_from_exp=True, **how), "blocks.1.0.bn2")


# torchvision

rows = [(1, 3, 1, 8, 8, 1), (3, 3, 2, 8, 8, 2), (2, 5, 2, 8, 16, 2)]
model = tv.EfficientNet([MBConvConfig(*row) for row in rows], 0.2, 0.0, num_classes=5, last_channel=12)
record("torchvision_b", model, "features.2.0.block.1.1")
rows = [[1, 4, 1, 1], [3, 4, 2, 2], [6, 8, 2, 2]]
model = tv.MobileNetV2(5, 0.25, rows, round_nearest=4)
# The size of what follows is fixed there.
model.features[-1] = nn.Sequential(nn.Conv2d(4, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6())
model.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(12, 5))
record("torchvision_v2", model, "features.2.conv.1.1")
rows = [
    (8, 3, 8, 8, True, "RE", 2, 1, 1.0),
    (8, 3, 16, 8, False, "RE", 2, 1, 1.0),
    (8, 3, 24, 8, False, "RE", 1, 1, 1.0),
    (8, 5, 24, 16, True, "HS", 2, 1, 1.0),
]
model = tv.MobileNetV3([InvertedResidualConfig(*row) for row in rows], 16, num_classes=5)
record("torchvision_v3", model, "features.2.block.1.1")


# The published sizes: logits of two images

full = {
    "timm/mobilenet_v2": "mobilenetv2_100",
    "timm/mobilenet_v3_small": "mobilenetv3_small_100",
    "timm/mobilenet_v3_large": "mobilenetv3_large_100",
    "timm/b0": "efficientnet_b0",
} | {f"timm/lite{i}": f"efficientnet_lite{i}" for i in range(5)}
full = {key: partial(timm.create_model, name) for key, name in full.items()} | {
    "torchvision/mobilenet_v2": tv.mobilenet_v2,
    "torchvision/mobilenet_v3_small": tv.mobilenet_v3_small,
    "torchvision/mobilenet_v3_large": tv.mobilenet_v3_large,
    "torchvision/b0": tv.efficientnet_b0,
    # With `image_size` None its padding is that of the images it gets.
    "package/lite0": partial(Package.from_name, "efficientnet-lite0", image_size=None),
    "package/lite3": partial(Package.from_name, "efficientnet-lite3", image_size=None),
}
for key, make in full.items():
    model = prepare(make(num_classes=3)).eval()
    with torch.no_grad():
        found[f"full/{key}"] = model(pictures(2, 3, 41, 34))
    print(key, sum(x.numel() for x in model.parameters()), found[f"full/{key}"].tolist())

save_file(found, Path(__file__).parent / "efficientnets.safetensors")
