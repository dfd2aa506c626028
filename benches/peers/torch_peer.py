"""PyTorch and the published TPGM and FTP code as peers of the side-by-side harness.

The protocol is in torch_common.py, which stands in front of this; besides, there are

    shapes 768x768 768 scalar  ok                  shapes of the model's tensors; makes the data
    run PEER                   ok 0.051            one round, its seconds

What is timed is the peer's own work: gradients are given, no model runs. As in the harness, gradients change sign every
FLIP_EVERY rounds and projections start from the same weights every round; neither is timed. Nor is what overwrites the
caches before every round. On a GPU the time is the device's, between two events.
"""

# The same numbers as in data.rs and methods.rs.
ANCHOR_SCALE = 5e-2
DISPLACEMENT_SCALE = 1e-3
GRADIENT_SCALE = 1e-3
FLIP_EVERY = 4
# More than any cache holds. On a GPU, writing it also takes longer than the host needs to start most rounds.
SCRUB_BYTES = 512 << 20
DTYPES = {"f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


class Tensors(torch.nn.Module):
    """A module that is nothing but a list of parameters."""

    def __init__(self, tensors):
        super().__init__()
        self.tensors = torch.nn.ParameterList(torch.nn.Parameter(t) for t in tensors)


class HostClock:
    """Seconds of a call by the host's clock."""

    def __init__(self):
        self.scrub = torch.empty(SCRUB_BYTES // 4)

    def time(self, call):
        self.scrub.zero_()
        start = time.perf_counter()
        call()
        return time.perf_counter() - start


class DeviceClock:
    """Seconds of a GPU's work, queued behind the scrubbing: what the host does meanwhile is not part of them."""

    def __init__(self, device):
        self.scrub = torch.empty(SCRUB_BYTES // 4, device=device)
        self.start = torch.cuda.Event(enable_timing=True)
        self.end = torch.cuda.Event(enable_timing=True)

    def time(self, call):
        self.scrub.zero_()
        self.start.record()
        call()
        self.end.record()
        self.end.synchronize()
        return self.start.elapsed_time(self.end) / 1e3


class Data:
    """Weights with gradients, anchors, and the first values of the weights."""

    def __init__(self, shapes, device, dtype):
        self.device = device
        generator = torch.Generator().manual_seed(0)

        def uniform(shape, scale):
            return torch.empty(shape).uniform_(-scale, scale, generator=generator)

        anchors, self.start, grads = [], [], []
        for shape in shapes:
            anchor = uniform(shape, ANCHOR_SCALE)
            start = anchor + uniform(shape, DISPLACEMENT_SCALE)
            grad = uniform(shape, GRADIENT_SCALE)
            for values, tensor in [(anchors, anchor), (self.start, start), (grads, grad)]:
                values.append(tensor.to(device, dtype))
        self.model = Tensors([s.clone() for s in self.start])
        self.anchor_model = Tensors(anchors)
        for p, grad in zip(self.params, grads):
            p.grad = grad

    @property
    def params(self):
        return list(self.model.parameters())

    @property
    def anchors(self):
        return list(self.anchor_model.parameters())

    @torch.no_grad()
    def restore_weights(self):
        for p, s in zip(self.params, self.start):
            p.copy_(s)

    @torch.no_grad()
    def flip_gradients(self):
        for p in self.params:
            p.grad.neg_()


class Step:
    """An optimizer step, with the published projection behind it if `projection` is given."""

    def __init__(self, data, make, projection=None):
        self.data = data
        self.rounds = 0
        data.restore_weights()
        self.optimizer = make(data)
        self.projection = projection(data) if projection else None

    def untimed(self):
        if self.rounds > 0 and self.rounds % FLIP_EVERY == 0:
            self.data.flip_gradients()
        self.rounds += 1

    def timed(self):
        self.optimizer.step()
        if self.projection:
            self.projection.project()


class Projection:
    """The published projection; with `update`, one projection update before it."""

    def __init__(self, data, tpgm, norm, update=False):
        self.data = data
        self.update = update
        self.tpgm = tpgm.TPGM(data.model, norm_mode=norm).to(data.device)
        self.adam = torch.optim.Adam(self.tpgm.parameters(), lr=1e-2)

    def untimed(self):
        self.data.restore_weights()

    def timed(self):
        if self.update:
            self.learn()
        self.project()

    def project(self):
        self.tpgm(self.data.model, self.data.anchor_model, apply=True)

    def learn(self):
        """The update without the model: the copy, its projection, and the way back from the projected weights'
        gradients (given) to the radii."""
        projected = copy.deepcopy(self.data.model)
        self.tpgm.apply_constraints(projected, self.data.anchor_model, iter(self.tpgm.constraints))
        self.adam.zero_grad()
        torch.autograd.backward(list(projected.parameters()), [p.grad for p in self.data.params])
        self.adam.step()


def torch_optimizer(cls, implementation, options, data):
    flags = {"loop": {"foreach": False, "fused": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
    return cls(data.params, **flags[implementation], **options)


def published_ftp(cls, options, data):
    names = [name for name, _ in data.model.named_parameters()]
    pre = [anchor.detach() for anchor in data.anchors]
    return cls([{"params": data.params, "name": names, "pre": pre}], **options)


def available_peers(ftp, tpgm):
    """Functions of the data, by the names the harness knows."""
    adamw = {"lr": 1e-3, "weight_decay": 0.0}
    sgd = {"lr": 1e-2, "momentum": 0.9}
    peers = {}
    for implementation in ["fused", "foreach", "loop"]:
        for name, cls, options in [
            ("adamw", torch.optim.AdamW, adamw),
            ("adamw_amsgrad", torch.optim.AdamW, {**adamw, "amsgrad": True}),
            ("sgd", torch.optim.SGD, sgd),
        ]:
            make = partial(torch_optimizer, cls, implementation, options)
            peers[f"torch_{name}_{implementation}"] = partial(Step, make=make)
    if ftp:
        peers["ftp_adamp"] = partial(Step, make=partial(published_ftp, ftp.AdamP, adamw))
        peers["ftp_sgdp"] = partial(Step, make=partial(published_ftp, ftp.SGDP, sgd))
    if tpgm:
        fused = partial(torch_optimizer, torch.optim.AdamW, "fused", adamw)
        mars = partial(Projection, tpgm=tpgm, norm="mars_norm")
        peers["torch_adamw_fused_tpgm_mars"] = partial(Step, make=fused, projection=mars)
        for short, norm in [("mars", "mars_norm"), ("l2", "l2_norm")]:
            peers[f"tpgm_project_{short}"] = partial(Projection, tpgm=tpgm, norm=norm)
            peers[f"tpgm_update_{short}"] = partial(Projection, tpgm=tpgm, norm=norm, update=True)
    return peers


class Rounds(Server):
    commands = [*Server.commands, "shapes", "run"]

    def __init__(self, args):
        super().__init__(args, args.device)
        self.dtype = DTYPES[args.dtype]
        self.clock = DeviceClock(self.device) if self.device.type == "cuda" else HostClock()

    def available(self, ftp, tpgm):
        return available_peers(ftp, tpgm)

    def shapes(self, *shapes):
        shapes = [[] if s == "scalar" else [int(n) for n in s.split("x")] for s in shapes]
        self.data = Data(shapes, self.device, self.dtype)

    def run(self, name):
        peer = self.live[name]
        peer.untimed()
        return f"{self.clock.time(peer.timed):.9f}"


def main():
    options = parser("torch_peer")
    options.add_argument("--device", required=True, help="cpu or cuda:N")
    options.add_argument("--dtype", choices=DTYPES, required=True)
    args = options.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        options.error("this PyTorch finds no GPU")
    Rounds(args).serve()


if __name__ == "__main__":
    main()
