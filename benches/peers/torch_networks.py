"""The networks that are trained, and their batches: the same as in network.rs, with the same numbers.

`names` says what the Rust program calls a tensor, and `ours` turns its weight into the shape that it has here.
"""

import json
import re

from torch import nn
from torch.nn import functional as F

# The same numbers as in network.rs.
TEXTS, TOKENS, VOCABULARY, TOPICS = 32, 64, 30522, 10
IMAGES, LARGE_IMAGES, SIDE, CLASSES = 32, 8, 32, 40


def numbers(seed, below, *shape):
    """A multiplicative hash of their position."""
    count = math.prod(shape)
    hashed = (torch.arange(count, dtype=torch.int64) + 1 + 7919 * seed) * 2654435761 % 2**32
    return (hashed % below).reshape(shape)


def pictures(seed, count, side):
    return numbers(seed, 256, count, 3, side, side).float() / 64 - 2, numbers(seed, CLASSES, count)


class Network(nn.Module):
    # What PyTorch computes convolutions fastest with.
    channels_last = False
    # Whether a step drops out at random: then losses behind it are not compared.
    drops = False

    def names(self, name):
        return name

    def ours(self, name, weight, shape):
        return weight.reshape(shape)

    def take(self, weights):
        """Values of a dictionary, all of them."""
        with torch.no_grad():
            left = set(weights)
            for name, x in [*self.named_parameters(), *self.named_buffers()]:
                if x.is_floating_point():
                    theirs = self.names(name)
                    x.copy_(self.ours(name, weights[theirs], x.shape))
                    left.remove(theirs)
        if left:
            raise ValueError(f"weights of no tensor: {sorted(left)[:3]}")

    def to_train(self):
        """As it is trained: with the running statistics of batch norms."""
        self.train()
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


class MiniLm(Network):
    """all-MiniLM-L6-v2 with mean pooling and a linear head, as transformers' BertModel computes it."""

    LAYERS, WIDTH, HEADS, INNER, POSITIONS, DROPOUT, EPS = 6, 384, 12, 1536, 512, 0.1, 1e-12
    HEAD = ["head.weight", "head.bias"]
    drops = True

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            width, inner = MiniLm.WIDTH, MiniLm.INNER
            self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
            self.out, self.out_norm = nn.Linear(width, width), nn.LayerNorm(width, MiniLm.EPS)
            self.inner, self.outer = nn.Linear(width, inner), nn.Linear(inner, width)
            self.outer_norm = nn.LayerNorm(width, MiniLm.EPS)
            self.dropout = nn.Dropout(MiniLm.DROPOUT)

        def forward(self, x, mask):
            def heads(projected):
                return projected.unflatten(-1, (MiniLm.HEADS, -1)).transpose(1, 2)

            attended = F.scaled_dot_product_attention(
                heads(self.query(x)),
                heads(self.key(x)),
                heads(self.value(x)),
                attn_mask=mask,
                dropout_p=MiniLm.DROPOUT if self.training else 0.0,
            )
            x = self.out_norm(x + self.dropout(self.out(attended.transpose(1, 2).flatten(2))))
            return self.outer_norm(x + self.dropout(self.outer(F.gelu(self.inner(x)))))

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, self.WIDTH)
        self.positions = nn.Embedding(self.POSITIONS, self.WIDTH)
        self.segments = nn.Embedding(2, self.WIDTH)
        self.norm = nn.LayerNorm(self.WIDTH, self.EPS)
        self.dropout = nn.Dropout(self.DROPOUT)
        self.blocks = nn.ModuleList(self.Block() for _ in range(self.LAYERS))
        self.head = nn.Linear(self.WIDTH, TOPICS)

    THEIRS = {
        "words": "embeddings.word_embeddings",
        "positions": "embeddings.position_embeddings",
        "segments": "embeddings.token_type_embeddings",
        "norm": "embeddings.LayerNorm",
        "head": "classifier",
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "out": "attention.output.dense",
        "out_norm": "attention.output.LayerNorm",
        "inner": "intermediate.dense",
        "outer": "output.dense",
        "outer_norm": "output.LayerNorm",
    }

    def names(self, name):
        block, module, tensor = re.fullmatch(r"(blocks\.\d+\.)?(\w+)\.(\w+)", name).groups()
        return f"{(block or '').replace('blocks', 'encoder.layer')}{self.THEIRS[module]}.{tensor}"

    def forward(self, x):
        ids, mask = x
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.words(ids) + self.positions(positions) + self.segments(torch.zeros_like(ids))
        x = self.dropout(self.norm(x))
        bias = torch.zeros(mask.shape, device=x.device).masked_fill(mask == 0, torch.finfo(x.dtype).min)[:, None, None, :]
        for block in self.blocks:
            x = block(x, bias)
        weights = mask.unsqueeze(-1).to(x.dtype)
        return self.head(self.dropout((x * weights).sum(1) / weights.sum(1)))

    @staticmethod
    def batch(seed):
        ids = numbers(seed, VOCABULARY, TEXTS, TOKENS)
        return (ids, torch.ones_like(ids)), numbers(seed, TOPICS, TEXTS)


class Mini(Network):
    """The residual network of the example domainnet_mini."""

    WIDTHS, WINDOW, STRIDE = (32, 96), 8, 4
    HEAD = ["head.weight", "head.bias"]

    class Norm(nn.LayerNorm):
        """Over the channels of `[images, channels, height, width]`."""

        def forward(self, x):
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.norm = Mini.Norm(width, 1e-5)
            self.conv, self.out = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 1)

        def forward(self, x):
            return x + self.out(F.relu(self.conv(self.norm(x))))

    def __init__(self):
        super().__init__()
        narrow, wide = self.WIDTHS
        self.stem = nn.Conv2d(3, narrow, self.WINDOW, self.STRIDE, padding=(self.WINDOW - self.STRIDE) // 2)
        self.first = nn.Sequential(self.Block(narrow), self.Block(narrow))
        self.merge = nn.Conv2d(narrow, wide, 2, 2)
        self.second = nn.Sequential(self.Block(wide), self.Block(wide))
        self.norm = self.Norm(wide, 1e-5)
        self.head = nn.Linear(wide, CLASSES)

    def names(self, name):
        return re.sub(r"second\.(\d)", lambda found: f"blocks.{int(found[1]) + 2}", name).replace("first", "blocks")

    def ours(self, name, weight, shape):
        if len(shape) < 4 or name == "stem.weight":
            return weight.reshape(shape)
        outputs, inputs, height, width = shape
        return weight.reshape(outputs, height, width, inputs).permute(0, 3, 1, 2)

    def forward(self, images):
        x = self.second(self.merge(self.first(self.stem(images))))
        return self.head(self.norm(x).mean((2, 3)))

    @staticmethod
    def batch(seed):
        return pictures(seed, IMAGES, SIDE)


class SameConv2d(nn.Conv2d):
    """With TensorFlow's padding."""

    def forward(self, x):
        def pad(size):
            (kernel, _), (stride, _) = self.kernel_size, self.stride
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            return total // 2, total - total // 2

        height, width = pad(x.shape[2]), pad(x.shape[3])
        if height[0] == height[1] == width[0] == width[1]:
            return F.conv2d(x, self.weight, None, self.stride, height[0], 1, self.groups)
        return F.conv2d(F.pad(x, width + height), self.weight, None, self.stride, 0, 1, self.groups)


class EfficientNetLite0(Network):
    """As the package efficientnet_lite_pytorch computes it, by its names."""

    ROWS = [(1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4), (6, 3, 1, 320, 1)]
    HEAD = ["_fc.weight", "_fc.bias"]
    channels_last = True

    class Block(nn.Module):
        def __init__(self, inputs, expansion, kernel, stride, outputs):
            super().__init__()
            inner = expansion * inputs
            if expansion > 1:
                self._expand_conv = nn.Conv2d(inputs, inner, 1, bias=False)
                self._bn0 = nn.BatchNorm2d(inner, 1e-3)
            self._depthwise_conv = SameConv2d(inner, inner, kernel, stride, groups=inner, bias=False)
            self._bn1 = nn.BatchNorm2d(inner, 1e-3)
            self._project_conv = nn.Conv2d(inner, outputs, 1, bias=False)
            self._bn2 = nn.BatchNorm2d(outputs, 1e-3)
            self.expands, self.adds = expansion > 1, stride == 1 and inputs == outputs

        def forward(self, x):
            y = F.relu6(self._bn0(self._expand_conv(x)), inplace=True) if self.expands else x
            y = F.relu6(self._bn1(self._depthwise_conv(y)), inplace=True)
            y = self._bn2(self._project_conv(y))
            return y + x if self.adds else y

    def __init__(self):
        super().__init__()
        self._conv_stem, self._bn0 = SameConv2d(3, 32, 3, 2, bias=False), nn.BatchNorm2d(32, 1e-3)
        blocks, inputs = [], 32
        for expansion, kernel, stride, outputs, count in self.ROWS:
            for i in range(count):
                blocks.append(self.Block(inputs, expansion, kernel, stride if i == 0 else 1, outputs))
                inputs = outputs
        self._blocks = nn.Sequential(*blocks)
        self._conv_head, self._bn1 = nn.Conv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280, 1e-3)
        self._fc = nn.Linear(1280, CLASSES)

    def forward(self, x):
        x = self._blocks(F.relu6(self._bn0(self._conv_stem(x)), inplace=True))
        return self._fc(F.relu6(self._bn1(self._conv_head(x)), inplace=True).mean((2, 3)))

    @staticmethod
    def batch(seed):
        return pictures(seed, IMAGES, 96)


class ResNet50(Network):
    """As torchvision computes it, by its names."""

    HEAD = ["fc.weight", "fc.bias"]
    channels_last = True

    class Block(nn.Module):
        def __init__(self, inputs, width, stride):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
            self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
            self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
            self.downsample = None
            if stride > 1 or inputs != 4 * width:
                conv = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)
                self.downsample = nn.Sequential(conv, nn.BatchNorm2d(4 * width))

        def forward(self, x):
            y = F.relu(self.bn1(self.conv1(x)), inplace=True)
            y = F.relu(self.bn2(self.conv2(y)), inplace=True)
            y = self.bn3(self.conv3(y))
            return F.relu(y + (self.downsample(x) if self.downsample else x), inplace=True)

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        inputs = 64
        for stage, count in enumerate([3, 4, 6, 3]):
            blocks = []
            for i in range(count):
                blocks.append(self.Block(inputs, 64 << stage, 2 if stage > 0 and i == 0 else 1))
                inputs = 256 << stage
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(2048, CLASSES)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x)), inplace=True), 3, 2, 1)
        return self.fc(self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3)))

    @staticmethod
    def batch(seed):
        return pictures(seed, LARGE_IMAGES, 224)


class VitB16(Network):
    """As timm computes it, by its names."""

    WIDTH, HEADS, LAYERS = 768, 12, 12
    HEAD = ["head.weight", "head.bias"]

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            width = VitB16.WIDTH
            self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
            self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
            self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

        def forward(self, x):
            qkv = self.attn["qkv"](self.norm1(x)).unflatten(-1, (3, VitB16.HEADS, -1)).permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(*qkv.unbind(0)).transpose(1, 2).flatten(2)
            x = x + self.attn["proj"](attended)
            return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))

    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, 197, self.WIDTH))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, self.WIDTH, 16, 16)})
        self.blocks = nn.Sequential(*(self.Block() for _ in range(self.LAYERS)))
        self.norm = nn.LayerNorm(self.WIDTH, 1e-6)
        self.head = nn.Linear(self.WIDTH, CLASSES)

    def forward(self, x):
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])

    @staticmethod
    def batch(seed):
        return pictures(seed, LARGE_IMAGES, 224)


NETWORKS = {
    "efficientnet-lite0": EfficientNetLite0,
    "resnet-50": ResNet50,
    "vit-b-16": VitB16,
    "minilm": MiniLm,
    "mini": Mini,
}


def read_weights(path):
    """The tensors of a safetensors file, all f32: a header in JSON, its length in front, and the values behind it."""
    data = bytearray(open(path, "rb").read())
    begin = 8 + int.from_bytes(data[:8], "little")

    def tensor(entry):
        start, end = (begin + offset for offset in entry["data_offsets"])
        if entry["dtype"] != "F32":
            raise ValueError(f"{path}: a tensor is {entry['dtype']}, not F32")
        return torch.frombuffer(data[start:end], dtype=torch.float32).reshape(entry["shape"])

    header = json.loads(data[8:begin])
    return {name: tensor(entry) for name, entry in header.items() if name != "__metadata__"}
