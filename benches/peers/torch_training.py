"""Whole training steps in PyTorch, as peers of the end-to-end harness.

The protocol is in torch_common.py and the networks are in torch_networks.py, which stand in front of this; besides, there are

    network minilm PATH        ok                         what is trained, from the weights of a safetensors file
    losses PEER                ok 2.31 2.29               of its batch without dropout: at first, and after the one step of `prepare`
    run PEER                   ok 0.7 0.9 0.03 0.0        one step, seconds of forward, backward, optimizer, projection
    whole PEER                 ok 1.6                     one step, its seconds

A GPU works by itself. `run` waits for it after each part, so that its work counts for the part that has asked for it; `whole`
waits as a real loop does, for the loss, and once more at the end.

Networks, weights, batches and hyper-parameters are those of the Rust program. Convolutional networks keep their channels side by
side, as PyTorch computes them fastest. Products are computed in f32 everywhere, as the Rust program does: on a GPU, PyTorch would
take TF32 for convolutions.
"""

# The same numbers as in training.rs.
RATE, WEIGHT_DECAY = 1e-4, 1e-2


class Training:
    """A model with an optimizer and, if it is given, the published TPGM with one projection update a step."""

    def __init__(self, data, make, tpgm=None):
        network, weights, self.device = data
        torch.manual_seed(0)
        self.model = network()
        self.model.take(read_weights(weights))
        self.batches = [on_device(network.batch(seed), self.device) for seed in range(2)]
        if network.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
            self.batches = [(images.to(memory_format=torch.channels_last), labels) for images, labels in self.batches]
        self.model = self.model.to(self.device)
        self.losses = [self.loss()]
        self.optimizer = make(self.model)
        self.tpgm = None
        if tpgm:
            self.anchors = copy.deepcopy(self.model)
            self.tpgm = tpgm.TPGM(self.model, norm_mode="mars_norm", exclude_list=network.HEAD).to(self.device)
            self.adam = torch.optim.Adam(self.tpgm.parameters(), lr=1e-2)

    def loss(self):
        """Of its batch, without dropout."""
        (inputs, labels), _ = self.batches
        self.model.eval()
        with torch.no_grad():
            loss = F.cross_entropy(self.model(inputs), labels).item()
        self.model.to_train()
        return loss

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
    return ftp.AdamP([group], lr=RATE, weight_decay=WEIGHT_DECAY, exclude_set=set(model.HEAD))


class Steps(Server):
    commands = [*Server.commands, "network", "losses", "run", "whole"]

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

    def network(self, name, weights):
        self.data = NETWORKS[name], weights, self.device

    def warm_up(self, peer):
        peer.whole()
        peer.losses.append(peer.loss())

    def losses(self, name):
        return " ".join(f"{loss:.9e}" for loss in self.live[name].losses)

    def run(self, name):
        return " ".join(f"{seconds:.9f}" for seconds in self.live[name].parts())

    def whole(self, name):
        return f"{self.live[name].whole():.9f}"


def main():
    Steps(arguments(parser("torch_training"))).serve()


if __name__ == "__main__":
    main()
