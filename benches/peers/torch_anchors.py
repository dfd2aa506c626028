"""What one GPU can do without this project: the speed of its memory, and PyTorch's AdamW. The anchors of every comparison.

Every measured call waits on the device behind a kernel that only spins, for longer than the host needs to queue the call: the
time between two events around it is the device's alone. What the host needs is printed beside it. Before every call more
memory than any cache holds is written. Rows have the format of side_by_side; those of optimizers are not taken in turns with
ours, so they are methods of their own.

The tensors of models come from a file, {"vit-b-16": [[768, 3, 16, 16], ...], ...}.
"""

import argparse
import datetime
import json
import math
import os
import platform
import re
import statistics
import sys
import time

import torch

BUFFER_BYTES = 512 << 20
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
WARM_UP = 3
# Device cycles: about 15 ms, which keeps the clock up too.
SPIN = 30_000_000


class Clock:
    """Seconds of calls: of the device, and of the host that queues them."""

    def __init__(self, device, rounds):
        self.device = device
        self.rounds = rounds
        self.scrub = torch.empty(BUFFER_BYTES // 4 if device.type == "cuda" else 1 << 20, device=device)

    def time(self, call, rounds=None):
        device, host = [], []
        for round in range(WARM_UP + (rounds or self.rounds)):
            self.scrub.zero_()
            seconds = self.once_on_gpu(call) if self.device.type == "cuda" else self.once_on_cpu(call)
            if round >= WARM_UP:
                device.append(seconds[0])
                host.append(seconds[1])
        return device, statistics.median(host)

    def once_on_gpu(self, call):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(SPIN)
        start.record()
        begun = time.perf_counter()
        call()
        host = time.perf_counter() - begun
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3, host

    def once_on_cpu(self, call):
        begun = time.perf_counter()
        call()
        seconds = time.perf_counter() - begun
        return seconds, seconds


class Rows:
    """Prints results, and appends them to the data file."""

    def __init__(self, path, device):
        self.path = path
        on_gpu = device.type == "cuda"
        self.run = {
            "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "commit": os.environ.get("TPGM_COMMIT", "unknown"),
            "cpu": processor(),
            "os": f"{platform.system().lower()} {platform.machine()}",
            "version": "0.1.0",
            "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
            "driver": driver() if on_gpu else None,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }

    def write(self, model, dtype, params, tensors, method, contestant, times, bytes_per_param, host):
        device_times = sorted(times)
        median = statistics.median(times)
        quarter = len(times) // 4
        rate = bytes_per_param * params / median / 1e9 if bytes_per_param else None
        row = {
            **self.run,
            "model": model,
            "dtype": dtype,
            "params": params,
            "tensors": tensors,
            "method": method,
            "contestant": contestant,
            "rounds": len(times),
            "median_s": median,
            "min_s": device_times[0],
            "max_s": device_times[-1],
            "spread_s": device_times[-1 - quarter] - device_times[quarter],
            "bytes_per_param": bytes_per_param,
            "gb_per_s": rate,
            "host_s": host,
        }
        speed = f", {rate:.0f} GB/s" if rate else ""
        print(f"{model} {dtype} {contestant}: {1e3 * median:.4f} ms{speed}; host {1e3 * host:.3f} ms", flush=True)
        if self.path:
            with open(self.path, "a") as file:
                file.write(json.dumps(row) + "\n")


def processor():
    try:
        with open("/proc/cpuinfo") as info:
            return next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return "unknown"


def driver():
    try:
        with open("/proc/driver/nvidia/version") as file:
            found = re.search(r"\b\d+(?:\.\d+)+\b", file.read())
            return found and found.group()
    except OSError:
        return None


def memory(clock, rows, elements):
    """Floors that owe nothing to this project: a copy, a read, a write, a triad."""
    for name, dtype in DTYPES.items():
        x, y = (torch.ones(elements, device=clock.device, dtype=dtype) for _ in range(2))
        size = x.element_size()
        for what, call, moved in [
            ("copy", lambda: y.copy_(x), 2),
            ("read", lambda: x.sum(), 1),
            ("write", lambda: y.fill_(1.0), 1),
            ("triad", lambda: torch.add(x, y, alpha=0.5, out=y), 3),
        ]:
            times, host = clock.time(call)
            rows.write("arrays", name, elements, 1, "anchor: memory", f"torch_{what}", times, moved * size, host)


def captured(call):
    """The call as a graph, which is replayed without Python or the host between its kernels."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def optimizers(clock, rows, model, shapes):
    """AdamW over given gradients, in PyTorch's forms. Returns how many of them failed."""
    on_gpu = clock.device.type == "cuda"
    forms = {
        "fused": {"fused": True},
        "fused_graph": {"fused": True, "capturable": True},
        "foreach": {"foreach": True},
    }
    failed = 0
    for name, dtype in DTYPES.items():
        for form, options in forms.items():
            if form == "fused_graph" and not on_gpu:
                continue
            try:
                optimizer(clock, rows, model, shapes, name, dtype, form, options)
            except RuntimeError as error:  # one form that this version lacks does not cost the others
                print(f"error: {model} {name} {form}: {error}".replace("\n", " "), flush=True)
                failed += 1
            if on_gpu:
                torch.cuda.empty_cache()
    return failed


def optimizer(clock, rows, model, shapes, name, dtype, form, options):
    tensors = [torch.nn.Parameter(torch.randn(s, device=clock.device, dtype=dtype) * 0.02) for s in shapes]
    for tensor in tensors:
        tensor.grad = torch.randn_like(tensor) * 1e-3
    adamw = torch.optim.AdamW(tensors, lr=1e-3, weight_decay=0.0, **options)
    step = captured(adamw.step) if form == "fused_graph" else adamw.step
    times, host = clock.time(step)
    # Reads weight, gradient and two moments; writes all but the gradient.
    moved = 7 * tensors[0].element_size()
    params = sum(math.prod(shape) for shape in shapes)
    rows.write(model, name, params, len(shapes), "anchor: adamw", f"torch_adamw_{form}", times, moved, host)


def main():
    options = argparse.ArgumentParser(prog="torch_anchors", description="What one GPU does with PyTorch alone")
    options.add_argument("--shapes", required=True, help="file with the tensors of models")
    options.add_argument("--out", help="file to which one JSON line per row is appended")
    options.add_argument("--device", default="cuda:0", help="cuda:N; or cpu, to try the program")
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--elements", type=int, default=128 << 20, help="of an array whose copy is measured")
    args = options.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            options.error("this PyTorch finds no GPU")
        torch.cuda.set_device(device)
    elif args.out:
        options.error("--out: the times of a processor are no anchors of a GPU")
    with open(args.shapes) as file:
        models = json.load(file)
    clock, rows = Clock(device, args.rounds), Rows(args.out, device)
    with torch.no_grad():
        memory(clock, rows, args.elements)
        failed = sum(optimizers(clock, rows, model, shapes) for model, shapes in models.items())
    if failed:
        sys.exit(f"error: {failed} measurements failed")


if __name__ == "__main__":
    main()
