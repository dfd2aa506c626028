"""Whole training steps in PyTorch, as peers of the end-to-end harness.

The protocol is in torch_common.py, which stands in front of this; besides, there are

    network minilm             ok                         or mini: what is trained, and its batches
    run PEER                   ok 0.7 0.9 0.03 0.0        one step, seconds of forward, backward, optimizer, projection
    whole PEER                 ok 1.6                     one step, its seconds

A GPU works by itself. `run` waits for it after each part, so that its work counts for the part that has asked for it; `whole`
waits as a real loop does, for the loss, and once more at the end.

Networks, batches and hyper-parameters are those of the Rust program. Weights are random: they do not change the time.
Products are computed in f32 everywhere, as the Rust program does: on a GPU, PyTorch would take TF32 for convolutions.
"""

from torch import nn
from torch.nn import functional as F

# The same numbers as in network.rs.
TEXTS, TOKENS, VOCABULARY, TOPICS = 32, 64, 30522, 10
IMAGES, SIDE, CLASSES = 32, 32, 40
RATE, WEIGHT_DECAY = 1e-4, 1e-2


class MiniLm(nn.Module):
    """all-MiniLM-L6-v2 with mean pooling and a linear head, as transformers' BertModel computes it."""

    LAYERS, WIDTH, HEADS, INNER, POSITIONS, DROPOUT, EPS = 6, 384, 12, 1536, 512, 0.1, 1e-12

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
    def batch(generator):
        ids = torch.randint(VOCABULARY, (TEXTS, TOKENS), generator=generator)
        return (ids, torch.ones_like(ids)), torch.randint(TOPICS, (TEXTS,), generator=generator)


class Mini(nn.Module):
    """The residual network of the example domainnet_mini."""

    WIDTHS, WINDOW, STRIDE = (32, 96), 8, 4

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

    def forward(self, images):
        x = self.second(self.merge(self.first(self.stem(images))))
        return self.head(self.norm(x).mean((2, 3)))

    @staticmethod
    def batch(generator):
        images = torch.empty(IMAGES, 3, SIDE, SIDE).uniform_(-2.0, 2.0, generator=generator)
        return images, torch.randint(CLASSES, (IMAGES,), generator=generator)


NETWORKS = {"minilm": MiniLm, "mini": Mini}
HEAD = ["head.weight", "head.bias"]


class Training:
    """A model with an optimizer and, if it is given, the published TPGM with one projection update a step."""

    def __init__(self, data, make, tpgm=None):
        network, self.device = data
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)
        self.model = network().train().to(self.device)
        self.batches = [on_device(network.batch(generator), self.device) for _ in range(2)]
        self.optimizer = make(self.model)
        self.tpgm = None
        if tpgm:
            self.anchors = copy.deepcopy(self.model)
            self.tpgm = tpgm.TPGM(self.model, norm_mode="mars_norm", exclude_list=HEAD).to(self.device)
            self.adam = torch.optim.Adam(self.tpgm.parameters(), lr=1e-2)

    def step(self, part_done):
        """Takes a step. `part_done` is called at its beginning and after each part."""
        (inputs, labels), held_out = self.batches
        part_done()
        loss = F.cross_entropy(self.model(inputs), labels)
        loss.item()
        part_done()
        self.optimizer.zero_grad()
        loss.backward()
        part_done()
        self.optimizer.step()
        part_done()
        if self.tpgm:
            self.update(*held_out)
        part_done()

    def wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def parts(self):
        moments = []

        def part_done():
            self.wait()
            moments.append(time.perf_counter())

        self.step(part_done)
        return [after - before for before, after in zip(moments, moments[1:])]

    def whole(self):
        self.wait()
        begun = time.perf_counter()
        self.step(lambda: None)
        self.wait()
        return time.perf_counter() - begun

    def update(self, inputs, labels):
        loss = F.cross_entropy(self.tpgm(self.model, self.anchors, x=inputs), labels)
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        self.tpgm(self.model, self.anchors, apply=True)


def on_device(values, device):
    """Tensors in tuples."""
    if isinstance(values, tuple):
        return tuple(on_device(value, device) for value in values)
    return values.to(device)


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY, fused=True)


def ftp_adamw(ftp, model):
    names, params = zip(*model.named_parameters())
    pre = [param.detach().clone() for param in params]
    group = {"params": list(params), "name": list(names), "pre": pre}
    return ftp.AdamP([group], lr=RATE, weight_decay=WEIGHT_DECAY, exclude_set=set(HEAD))


class Steps(Server):
    commands = [*Server.commands, "network", "run", "whole"]

    def __init__(self, args):
        super().__init__(args, args.device)
        torch.backends.cudnn.allow_tf32 = False

    def available(self, ftp, tpgm):
        peers = {"torch": partial(Training, make=adamw)}
        if ftp:
            peers["published_ftp"] = partial(Training, make=partial(ftp_adamw, ftp))
        if tpgm:
            peers["published_tpgm"] = partial(Training, make=adamw, tpgm=tpgm)
        return peers

    def network(self, name):
        self.data = NETWORKS[name], self.device

    def warm_up(self, peer):
        peer.whole()

    def run(self, name):
        return " ".join(f"{seconds:.9f}" for seconds in self.live[name].parts())

    def whole(self, name):
        return f"{self.live[name].whole():.9f}"


def main():
    Steps(arguments(parser("torch_training"))).serve()


if __name__ == "__main__":
    main()
