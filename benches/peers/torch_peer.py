"""PyTorch and the published TPGM and FTP code as peers of the side-by-side harness.

Reads one command a line on standard input and answers each with one line, `ok ...` or `error ...`:

    hello                      ok {"torch": ..., "threads": ..., "peers": [...]}
    shapes 768x768 768 scalar  ok                  shapes of the model's tensors; makes the data
    prepare PEER               ok                  makes the state of one peer
    run PEER N                 ok 0.051 0.050      N rounds, seconds of each
    drop PEER                  ok                  frees it
    quit

What is timed is the peer's own work: gradients are given, no model runs. As in the harness, gradients change sign every
FLIP_EVERY rounds and projections start from the same weights every round; neither is timed.
"""

import argparse
import copy
import gc
import importlib
import importlib.util
import json
import os
import sys
import time
from functools import partial

import torch

# The same numbers as in data.rs and methods.rs.
ANCHOR_SCALE = 5e-2
DISPLACEMENT_SCALE = 1e-3
GRADIENT_SCALE = 1e-3
FLIP_EVERY = 4


def load_file(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_ftp(checkout):
    # The published code imports a marker that later versions of PyTorch dropped; any object does.
    optimizer = importlib.import_module("torch.optim.optimizer")
    if not hasattr(optimizer, "required"):
        optimizer.required = object()
    return load_file("published_ftp", os.path.join(checkout, "util", "FTP.py"))


def load_tpgm(checkout):
    return load_file("published_tpgm", os.path.join(checkout, "ImageNet_ViT_Exp", "utils", "tpgm.py"))


class Tensors(torch.nn.Module):
    """A module that is nothing but a list of parameters."""

    def __init__(self, tensors):
        super().__init__()
        self.tensors = torch.nn.ParameterList(torch.nn.Parameter(t) for t in tensors)


class Data:
    """Weights with gradients, anchors, and the first values of the weights."""

    def __init__(self, shapes):
        generator = torch.Generator().manual_seed(0)

        def uniform(shape, scale):
            return torch.empty(shape).uniform_(-scale, scale, generator=generator)

        anchors = [uniform(shape, ANCHOR_SCALE) for shape in shapes]
        self.start = [a + uniform(a.shape, DISPLACEMENT_SCALE) for a in anchors]
        self.model = Tensors([s.clone() for s in self.start])
        self.anchor_model = Tensors(anchors)
        for p in self.params:
            p.grad = uniform(p.shape, GRADIENT_SCALE)

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
        self.tpgm = tpgm.TPGM(data.model, norm_mode=norm)
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


class Server:
    def __init__(self, args):
        torch.set_num_threads(args.threads)
        ftp = load_ftp(args.ftp) if args.ftp else None
        tpgm = load_tpgm(args.tpgm) if args.tpgm else None
        self.peers = available_peers(ftp, tpgm)
        self.data = None
        self.live = {}

    def hello(self):
        return json.dumps(
            {"torch": torch.__version__, "threads": torch.get_num_threads(), "peers": sorted(self.peers)}
        )

    def shapes(self, *shapes):
        self.data = Data([[] if s == "scalar" else [int(n) for n in s.split("x")] for s in shapes])

    def prepare(self, name):
        if self.data is None:
            raise ValueError("prepare before shapes")
        self.live[name] = self.peers[name](self.data)

    def run(self, name, rounds):
        peer = self.live[name]
        seconds = []
        for _ in range(int(rounds)):
            peer.untimed()
            start = time.perf_counter()
            peer.timed()
            seconds.append(time.perf_counter() - start)
        return " ".join(f"{s:.9f}" for s in seconds)

    def drop(self, name):
        del self.live[name]
        gc.collect()


def main():
    parser = argparse.ArgumentParser(description="Peer of the side-by-side harness")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--ftp", help="checkout of GT-RIPL/FTP")
    parser.add_argument("--tpgm", help="checkout of PotatoTian/TPGM")
    args = parser.parse_args()
    # Published code prints; standard output belongs to the protocol.
    answers, sys.stdout = sys.stdout, sys.stderr
    server = Server(args)
    commands = {name: getattr(server, name) for name in ["hello", "shapes", "prepare", "run", "drop"]}
    for line in sys.stdin:
        command, *words = line.split()
        if command == "quit":
            return
        try:
            answer = commands[command](*words)
            print(*["ok", answer] if answer else ["ok"], file=answers, flush=True)
        except Exception as error:  # the harness decides what to do about it
            print("error", f"{type(error).__name__}: {error}".replace("\n", " "), file=answers, flush=True)


if __name__ == "__main__":
    main()
