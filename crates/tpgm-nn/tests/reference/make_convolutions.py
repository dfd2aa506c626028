"""Writes `convolutions.safetensors`, what PyTorch computes with a convolution, its norm in evaluation mode and an activation:
`python make_convolutions.py`, PyTorch 2.

Keys are `<case>/<tensor>`: the arguments, the cotangent of the result, the result, and the gradient of each argument. All in f64.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

torch.manual_seed(0)
found = {}

ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "relu6": F.relu6, "hard-swish": F.hardswish, "silu": F.silu}


def record(name, shape, outputs, kernel, stride, padding, groups, activation):
    """`padding` is a number, or `same` for TensorFlow's."""
    x = torch.randn(shape, dtype=torch.float64) * 2
    weight = torch.randn(outputs, shape[1] // groups, kernel, kernel, dtype=torch.float64)
    gamma, beta = torch.rand(outputs, dtype=torch.float64) + 0.5, torch.randn(outputs, dtype=torch.float64)
    mean, var = torch.randn(outputs, dtype=torch.float64), torch.rand(outputs, dtype=torch.float64) + 0.5
    args = {"x": x, "weight": weight, "gamma": gamma, "beta": beta}
    for arg in args.values():
        arg.requires_grad_()
    if padding == "same":
        edges = []
        for size in (shape[3], shape[2]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            edges += [total // 2, total - total // 2]
        y = F.conv2d(F.pad(x, edges), weight, stride=stride, groups=groups)
    else:
        y = F.conv2d(x, weight, stride=stride, padding=padding, groups=groups)
    y = ACTIVATIONS[activation](F.batch_norm(y, mean, var, gamma, beta, training=False, eps=1e-3))
    cotangent = torch.randn_like(y)
    grads = torch.autograd.grad(y, list(args.values()), cotangent)
    tensors = args | {"mean": mean, "var": var, "cotangent": cotangent, "y": y}
    tensors |= {f"grad_{arg}": grad for arg, grad in zip(args, grads)}
    for key, value in tensors.items():
        found[f"{name}/{key}"] = value.detach().contiguous()


record("one_by_one", (2, 6, 5, 4), 9, 1, 1, 0, 1, "relu6")
record("depthwise_same", (2, 18, 8, 7), 18, 5, 2, "same", 18, "hard-swish")
record("depthwise", (2, 8, 3, 3), 8, 3, 1, 1, 8, "silu")
record("ordinary_same", (2, 3, 8, 9), 5, 3, 2, "same", 1, "relu6")
record("groups", (1, 4, 6, 6), 6, 3, 1, 1, 2, "relu")
record("no_activation", (2, 5, 4, 4), 3, 3, 2, 1, 1, "none")
save_file(found, Path(__file__).parent / "convolutions.safetensors")
