"""What the programs with PyTorch share: the published code, and the protocol. Put in front of each, see peer.rs.

A program reads one command a line on standard input and answers each with one line, `ok ...` or `error ...`. All know

    hello                      ok {"program": "torch", "version": ..., "threads": ..., "device": ..., "peers": [...]}
    prepare PEER               ok                  makes the state of one peer
    drop PEER                  ok                  frees it
    quit
"""

import argparse
import copy
import gc
import importlib
import importlib.util
import json
import math
import os
import sys
import time
from functools import partial

import torch


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


def published(load, checkout):
    """The published code of a checkout, if there is one. One that does not load is left out: the others go on."""
    if not checkout:
        return None
    try:
        return load(checkout)
    except Exception as error:
        print(f"{checkout} is left out: {type(error).__name__}: {error}", file=sys.stderr)
        return None


def parser(program):
    parser = argparse.ArgumentParser(prog=program, description="Peer of the benchmarks of tpgm")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--ftp", help="checkout of GT-RIPL/FTP")
    parser.add_argument("--tpgm", help="checkout of PotatoTian/TPGM")
    parser.add_argument("--device", required=True, help="cpu or cuda:N")
    return parser


def arguments(parser):
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("this PyTorch finds no GPU")
    return args


class Server:
    """Peers by name, made when they are asked for. Every method that `commands` names is a command of the protocol."""

    commands = ["hello", "prepare", "drop"]

    def __init__(self, args, device):
        torch.set_num_threads(args.threads)
        self.device = torch.device(device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self.peers = self.available(published(load_ftp, args.ftp), published(load_tpgm, args.tpgm))
        self.data = None
        self.live = {}

    def hello(self):
        on_gpu = self.device.type == "cuda"
        return json.dumps(
            {
                "program": "torch",
                "version": torch.__version__,
                "threads": torch.get_num_threads(),
                "device": torch.cuda.get_device_name(self.device) if on_gpu else "cpu",
                "peers": sorted(self.peers),
            }
        )

    def prepare(self, name):
        if self.data is None:
            raise ValueError("prepare before there is anything to work on")
        try:
            self.live[name] = self.peers[name](self.data)
            # Optimizers make their state in their first round. What does not fit into memory is noticed now, not in the middle.
            self.warm_up(self.live[name])
        except Exception:
            self.live.pop(name, None)
            raise

    def warm_up(self, peer):
        pass

    def drop(self, name):
        self.live.pop(name, None)
        self.free()

    def free(self):
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # the harness needs the memory

    def serve(self):
        # Published code prints; standard output belongs to the protocol.
        answers, sys.stdout = sys.stdout, sys.stderr
        for line in sys.stdin:
            command, *words = line.split()
            if command == "quit":
                return
            try:
                if command not in self.commands:
                    raise ValueError(f"no command {command}")
                answer = getattr(self, command)(*words)
                print(*["ok", answer] if answer else ["ok"], file=answers, flush=True)
                continue
            except Exception as error:  # the harness decides what to do about it
                message = f"{type(error).__name__}: {error}".replace("\n", " ")
                print("error", message, file=answers, flush=True)
            # Only now does nothing refer to what failed.
            self.free()
