"""PyTorch and the published TPGM and FTP code as peers of the side-by-side harness.

The protocol is in torch_common.py, which stands in front of this; besides, there are

    shapes 768x768 768 scalar  ok                  shapes of the model's tensors; makes the data
    run PEER                   ok 0.051 0.0004     one round, its seconds; on a GPU also the host's to queue it

What is timed is the peer's own work: gradients are given, no model runs. As in the harness, gradients change sign every
FLIP_EVERY rounds and projections start from the same weights every round; neither is timed. Nor is what drives everything
else out of the caches before every round. On a GPU the time is the device's, between two events, behind work that keeps it
busy for LEAD seconds: what the host does meanwhile is not in it, unless the host needs longer than that or waits.

With weights in half precision, PyTorch's optimizers and the published ones keep their moments in half precision and have no
masters. Peers with `masters` in their name do what the harness does: moments and masters in f32.
"""

# The same numbers as in data.rs and methods.rs.
ANCHOR_SCALE = 5e-2
DISPLACEMENT_SCALE = 1e-3
GRADIENT_SCALE = 1e-3
FLIP_EVERY = 4
# The same number as in target/gpu.rs.
LEAD = 10e-3
# More than any cache holds.
SCRUB_BYTES = 512 << 20
DTYPES = {"f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


class Tensors(torch.nn.Module):
    """A module that is nothing but a list of parameters."""

    def __init__(self, tensors):
        super().__init__()
        self.tensors = torch.nn.ParameterList(torch.nn.Parameter(t) for t in tensors)


class HostClock:
    """Seconds of a call by the host's clock, from caches that hold nothing of its data and nothing to be written back."""

    def __init__(self):
        # Not zeros: Linux would show the same page of zeros everywhere.
        self.scrub = torch.ones(SCRUB_BYTES // 4)

    def time(self, call):
        self.scrub.sum()
        start = time.perf_counter()
        call()
        return [time.perf_counter() - start]


class DeviceClock:
    """Seconds of a GPU's work, and of the host to queue it, from a cache that holds nothing of its data and nothing to be
    written back.

    Before the first event the device copies, for about LEAD seconds, as the harness lets it do before our own rounds: so the
    host is ahead when the call begins, and the clocks are up.
    """

    WAKE_UP = 10
    # No device copies the array in less: a clock that says so stands still.
    CREDIBLE = 10e-6

    def __init__(self, device):
        self.scrub = torch.ones(SCRUB_BYTES // 4, device=device)
        self.copied = torch.empty_like(self.scrub)
        self.sum = torch.empty((), device=device)
        self.start = torch.cuda.Event(enable_timing=True)
        self.end = torch.cuda.Event(enable_timing=True)
        for _ in range(self.WAKE_UP):
            self.copied.copy_(self.scrub)
        seconds, _ = self.between(lambda: self.copied.copy_(self.scrub))
        self.copies = math.ceil(LEAD / seconds) if seconds > self.CREDIBLE else 1

    def time(self, call):
        for _ in range(self.copies):
            self.copied.copy_(self.scrub)
        torch.sum(self.scrub, 0, out=self.sum)
        return self.between(call)

    def between(self, call):
        self.start.record()
        begun = time.perf_counter()
        call()
        host = time.perf_counter() - begun
        self.end.record()
        self.end.synchronize()
        return [self.start.elapsed_time(self.end) / 1e3, host]


class Data:
    """Weights with gradients, anchors, and the first values of the weights."""

    def __init__(self, shapes, device, dtype):
        self.device = device
        # On the device: the host would take minutes for a large model.
        generator = torch.Generator(device).manual_seed(0)

        def uniform(shape, scale):
            return torch.empty(shape, device=device).uniform_(-scale, scale, generator=generator)

        anchors, self.start, grads = [], [], []
        for shape in shapes:
            anchor = uniform(shape, ANCHOR_SCALE)
            start = anchor + uniform(shape, DISPLACEMENT_SCALE)
            grad = uniform(shape, GRADIENT_SCALE)
            for values, tensor in [(anchors, anchor), (self.start, start), (grads, grad)]:
                values.append(tensor.to(dtype))
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
        self.optimizer = make(self.trained())
        self.projection = projection(data) if projection else None

    def trained(self):
        """What the optimizer works on."""
        return self.data

    def untimed(self):
        if self.rounds > 0 and self.rounds % FLIP_EVERY == 0:
            self.data.flip_gradients()
        self.rounds += 1

    def timed(self):
        self.optimizer.step()
        if self.projection:
            self.projection.project()


class MastersStep(Step):
    """A step on masters in f32, with moments in f32, as it is written where weights are kept in half precision: gradients are
    widened before it, weights rounded behind it."""

    def trained(self):
        self.params = [torch.nn.Parameter(p.detach().float()) for p in self.data.params]
        for master in self.params:
            master.grad = torch.empty_like(master)
        return self

    @torch.no_grad()
    def timed(self):
        weights = self.data.params
        torch._foreach_copy_([master.grad for master in self.params], [p.grad for p in weights])
        self.optimizer.step()
        torch._foreach_copy_(weights, self.params)


class Graph:
    """The rounds of another peer, captured in a CUDA graph once and replayed: the host makes one call."""

    # Before a capture, as PyTorch asks for: state is made, and kernels are loaded.
    WARM_UP = 3

    def __init__(self, data, make):
        self.peer = make(data)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(self.WARM_UP):
                self.peer.timed()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.peer.timed()

    def untimed(self):
        self.peer.untimed()

    def timed(self):
        self.graph.replay()


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


def available_peers(ftp, tpgm, on_gpu, half):
    """Functions of the data, by the names the harness knows."""
    adamw = {"lr": 1e-3, "weight_decay": 0.0}
    sgd = {"lr": 1e-2, "momentum": 0.9}
    # Steps are counted on the device, so that a graph counts them, too.
    capturable = {**adamw, "capturable": True}
    peers = {}
    for implementation in ["fused", "foreach", "loop"]:
        for name, cls, options in [
            ("adamw", torch.optim.AdamW, adamw),
            ("adamw_amsgrad", torch.optim.AdamW, {**adamw, "amsgrad": True}),
            ("sgd", torch.optim.SGD, sgd),
        ]:
            make = partial(torch_optimizer, cls, implementation, options)
            peers[f"torch_{name}_{implementation}"] = partial(Step, make=make)
    fused = partial(torch_optimizer, torch.optim.AdamW, "fused")
    kinds = [("torch_adamw_fused", Step)]
    if half:
        kinds.append(("torch_adamw_fused_masters", MastersStep))
        peers["torch_adamw_fused_masters"] = partial(MastersStep, make=partial(fused, adamw))
    if on_gpu:
        for name, kind in kinds:
            peers[f"{name}_graph"] = partial(Graph, make=partial(kind, make=partial(fused, capturable)))
    if ftp:
        peers["ftp_adamp"] = partial(Step, make=partial(published_ftp, ftp.AdamP, adamw))
        peers["ftp_sgdp"] = partial(Step, make=partial(published_ftp, ftp.SGDP, sgd))
    if tpgm:
        mars = partial(Projection, tpgm=tpgm, norm="mars_norm")
        peers["torch_adamw_fused_tpgm_mars"] = partial(Step, make=partial(fused, adamw), projection=mars)
        for short, norm in [("mars", "mars_norm"), ("l2", "l2_norm")]:
            peers[f"tpgm_project_{short}"] = partial(Projection, tpgm=tpgm, norm=norm)
            peers[f"tpgm_update_{short}"] = partial(Projection, tpgm=tpgm, norm=norm, update=True)
    return peers


class Rounds(Server):
    commands = [*Server.commands, "shapes", "run"]

    def __init__(self, args):
        self.dtype = DTYPES[args.dtype]
        super().__init__(args, args.device)
        self.clock = DeviceClock(self.device) if self.device.type == "cuda" else HostClock()

    def available(self, ftp, tpgm):
        half = self.dtype in (torch.float16, torch.bfloat16)
        return available_peers(ftp, tpgm, self.device.type == "cuda", half)

    def shapes(self, *shapes):
        shapes = [[] if s == "scalar" else [int(n) for n in s.split("x")] for s in shapes]
        self.data = Data(shapes, self.device, self.dtype)

    def warm_up(self, peer):
        peer.untimed()
        peer.timed()
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def run(self, name):
        peer = self.live[name]
        peer.untimed()
        return " ".join(f"{seconds:.9f}" for seconds in self.clock.time(peer.timed))


def main():
    options = parser("torch_peer")
    options.add_argument("--dtype", choices=DTYPES, required=True)
    Rounds(arguments(options)).serve()


if __name__ == "__main__":
    main()
