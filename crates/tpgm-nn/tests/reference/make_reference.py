"""Writes `reference.safetensors`, what PyTorch computes with tiny models: `python make_reference.py`, PyTorch 2.

Keys are `model/weights/<name in the checkpoint>` and `model/<input or output>`. Weights and images are f32, all else is computed
from them in f64.
"""

import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)
found = {}


def prepare(model):
    """Random values that f32 holds exactly, in a model of f64."""
    with torch.no_grad():
        for name, value in list(model.named_parameters()) + list(model.named_buffers()):
            if not value.is_floating_point():
                continue
            # Small enough that activations keep their size.
            x = torch.randn(value.shape) * (0.3 if value.ndim < 2 else value[0].numel() ** -0.5)
            if name.endswith("running_var"):
                x = x.abs() + 0.5
            elif value.ndim == 1 and name.endswith("weight"):
                x = x + 1
            value.copy_(x)
    return model.double()


def record(model_name, model=None, prefix="", **tensors):
    if model is not None:
        for name, value in model.state_dict().items():
            kept = value.float() if value.is_floating_point() else value
            found[f"{model_name}/weights/{prefix}{name}"] = kept.clone().contiguous()
    for name, value in tensors.items():
        found[f"{model_name}/{name}"] = value.detach().to(torch.float32 if name == "images" else value.dtype, copy=True).contiguous()


def pictures(*shape):
    return torch.randn(*shape).double()


# timm's ViT


class TimmAttention(nn.Module):
    def __init__(self, size, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(size, 3 * size)
        self.proj = nn.Linear(size, size)

    def forward(self, x):
        b, n, size = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, size // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, size))


class TimmMlp(nn.Module):
    def __init__(self, size, inner):
        super().__init__()
        self.fc1 = nn.Linear(size, inner)
        self.fc2 = nn.Linear(inner, size)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class TimmBlock(nn.Module):
    def __init__(self, size, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(size, eps=1e-6)
        self.attn = TimmAttention(size, heads)
        self.norm2 = nn.LayerNorm(size, eps=1e-6)
        self.mlp = TimmMlp(size, 2 * size)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TimmVit(nn.Module):
    def __init__(self, size=12, heads=3, image=6, patch=3, classes=5):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size))
        self.pos_embed = nn.Parameter(torch.zeros(1, (image // patch) ** 2 + 1, size))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, size, patch, stride=patch)
        self.blocks = nn.Sequential(TimmBlock(size, heads), TimmBlock(size, heads))
        self.norm = nn.LayerNorm(size, eps=1e-6)
        self.head = nn.Linear(size, classes)

    def forward(self, x):
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


model = prepare(TimmVit())
images = pictures(2, 3, 6, 6)
record("timm", model, images=images, logits=model(images))


# Batch norm


def batch_norm(name, x, momentum, training):
    norm = prepare(nn.BatchNorm2d(x.shape[1], eps=1e-3, momentum=momentum))
    record(name, norm)
    norm.train(training)
    x = x.requires_grad_()
    y = norm(x)
    weights = torch.linspace(-1, 2, y.numel()).double().reshape(y.shape)
    (y * weights).sum().backward()
    record(
        name,
        x=x,
        y=y,
        output_grad=weights,
        x_grad=x.grad,
        weight_grad=norm.weight.grad,
        bias_grad=norm.bias.grad,
        running_mean=norm.running_mean,
        running_var=norm.running_var,
    )


batch_norm("batch_norm_train", pictures(3, 4, 2, 5) * 2 + 1, 0.1, True)
batch_norm("batch_norm_eval", pictures(2, 3, 3, 1), 0.3, False)


# ResNet, under torchvision's names


class Basic(nn.Module):
    grow = 1

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(inputs, width, stride)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + (self.downsample(x) if self.downsample else x))


class Bottleneck(nn.Module):
    grow = 4

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = shortcut(inputs, 4 * width, stride)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + (self.downsample(x) if self.downsample else x))


def shortcut(inputs, outputs, stride):
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    def __init__(self, block, layers, width, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for i, count in enumerate(layers):
            blocks = []
            for j in range(count):
                blocks.append(block(inputs, width << i, 2 if i > 0 and j == 0 else 1))
                inputs = (width << i) * block.grow
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


def resnet(name, model, images):
    record(name, images=images, eval=model.eval()(images))
    record(name, train=model.train()(images))
    # Running statistics after one batch.
    for key in ["bn1", "layer4.0.bn2"]:
        norm = model.get_submodule(key)
        record(name, **{f"{key}.running_mean": norm.running_mean, f"{key}.running_var": norm.running_var})


model = prepare(ResNet(Basic, [2, 1, 1, 1], 2, 5))
record("resnet_basic", model)
resnet("resnet_basic", model, pictures(3, 3, 33, 40))
# MoCo-v3: a projector in place of `fc`, the same again as momentum encoder, and a predictor beside them.
model = ResNet(Bottleneck, [1, 2, 1, 1], 2, 5)
outputs = model.fc.in_features
model.fc = nn.Sequential(
    nn.Linear(outputs, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4, affine=False)
)
prepare(model)
record("moco", model, "module.base_encoder.")
record("moco", prepare(nn.Linear(4, 6, bias=False)), "module.predictor.0.")
record("moco", prepare(nn.Conv2d(3, 2, 7, bias=False)), "module.momentum_encoder.conv1.")
model.fc = nn.Identity()
resnet("moco", model, pictures(4, 3, 40, 40))


# CLIP, under OpenAI's names


class ClipBlock(nn.Module):
    def __init__(self, size, heads, mask):
        super().__init__()
        self.attn = nn.MultiheadAttention(size, heads, batch_first=True)
        self.ln_1 = nn.LayerNorm(size)
        self.mlp = nn.Module()
        self.mlp.c_fc = nn.Linear(size, 4 * size)
        self.mlp.c_proj = nn.Linear(4 * size, size)
        self.ln_2 = nn.LayerNorm(size)
        self.mask = mask

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=self.mask)[0]
        y = self.mlp.c_fc(self.ln_2(x))
        return x + self.mlp.c_proj(y * torch.sigmoid(1.702 * y))


def transformer(size, heads, layers, mask=None):
    module = nn.Module()
    module.resblocks = nn.Sequential(*[ClipBlock(size, heads, mask) for _ in range(layers)])
    return module


class ClipVit(nn.Module):
    def __init__(self, size=8, heads=2, image=6, patch=3, outputs=5):
        super().__init__()
        self.conv1 = nn.Conv2d(3, size, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(size))
        self.positional_embedding = nn.Parameter(torch.zeros((image // patch) ** 2 + 1, size))
        self.ln_pre = nn.LayerNorm(size)
        self.transformer = transformer(size, heads, 2)
        self.ln_post = nn.LayerNorm(size)
        self.proj = nn.Parameter(torch.zeros(size, outputs))

    def forward(self, x):
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        return self.ln_post(self.transformer.resblocks(self.ln_pre(x))[:, 0]) @ self.proj


class ClipBottleneck(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.stride = stride
        self.downsample = None
        if stride > 1 or inputs != 4 * width:
            self.downsample = nn.Sequential()
            self.downsample.add_module("0", nn.Conv2d(inputs, 4 * width, 1, bias=False))
            self.downsample.add_module("1", nn.BatchNorm2d(4 * width))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.avg_pool2d(F.relu(self.bn2(self.conv2(y))), self.stride)
        y = self.bn3(self.conv3(y))
        return F.relu(y + (self.downsample(F.avg_pool2d(x, self.stride)) if self.downsample else x))


class AttentionPool(nn.Module):
    def __init__(self, tokens, size, heads, outputs):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.zeros(tokens + 1, size))
        self.k_proj = nn.Linear(size, size)
        self.q_proj = nn.Linear(size, size)
        self.v_proj = nn.Linear(size, size)
        self.c_proj = nn.Linear(size, outputs)
        self.heads = heads

    def forward(self, x):
        b, size = x.shape[:2]
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positional_embedding
        split = lambda y: y.reshape(b, -1, self.heads, size // self.heads).transpose(1, 2)
        q, k, v = split(self.q_proj(x[:, :1])), split(self.k_proj(x)), split(self.v_proj(x))
        weights = (q @ k.transpose(2, 3) / math.sqrt(size // self.heads)).softmax(-1)
        return self.c_proj((weights @ v).transpose(1, 2).reshape(b, size))


class ClipResNet(nn.Module):
    def __init__(self, layers=(1, 2, 1, 1), width=2, heads=2, image=64, outputs=5):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width // 2, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, 1, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        inputs = width
        for i, count in enumerate(layers):
            blocks = []
            for j in range(count):
                blocks.append(ClipBottleneck(inputs, width << i, 2 if i > 0 and j == 0 else 1))
                inputs = (width << i) * 4
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.attnpool = AttentionPool((image // 32) ** 2, inputs, heads, outputs)

    def forward(self, x):
        for conv, norm in [(self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)]:
            x = F.relu(norm(conv(x)))
        x = F.avg_pool2d(x, 2)
        return self.attnpool(self.layer4(self.layer3(self.layer2(self.layer1(x)))))


class Clip(nn.Module):
    def __init__(self, visual, vocabulary=19, length=7, size=6, heads=2, outputs=5):
        super().__init__()
        self.visual = visual
        mask = torch.full((length, length), float("-inf")).triu(1).double()
        self.transformer = transformer(size, heads, 2, mask)
        self.token_embedding = nn.Embedding(vocabulary, size)
        self.positional_embedding = nn.Parameter(torch.zeros(length, size))
        self.ln_final = nn.LayerNorm(size)
        self.text_projection = nn.Parameter(torch.zeros(size, outputs))
        self.logit_scale = nn.Parameter(torch.tensor(0.0))

    def encode_text(self, ids):
        x = self.token_embedding(ids) + self.positional_embedding
        x = self.ln_final(self.transformer.resblocks(x))
        return x[torch.arange(len(x)), ids.argmax(-1)] @ self.text_projection

    def forward(self, images, ids):
        a, b = F.normalize(self.visual(images)), F.normalize(self.encode_text(ids))
        return self.logit_scale.exp() * a @ b.T


# The last token of the vocabulary ends a text; what follows is padding.
ids = torch.tensor([[17, 3, 9, 18, 0, 0, 0], [17, 18, 0, 0, 0, 0, 0], [17, 1, 2, 3, 4, 5, 18]])
for name, visual, images in [
    ("clip_vit", ClipVit(), pictures(2, 3, 6, 6)),
    ("clip_resnet", ClipResNet(), pictures(3, 3, 64, 64)),
]:
    model = prepare(Clip(visual)).eval()
    record(
        name,
        model,
        images=images,
        ids=ids,
        image_features=model.visual(images),
        text_features=model.encode_text(ids),
        logits=model(images, ids),
    )
    if name == "clip_resnet":
        record(name, train=model.visual.train()(images))

save_file(found, Path(__file__).parent / "reference.safetensors")
