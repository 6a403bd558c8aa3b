"""Time one optimizer step against torch's Adam and pytorch_optimizer's Aida, in one process.

    python benchmarks/step.py [--device cuda] [--models vgg11 llama tiny] [--json step.json]

In each round, the contenders take turns with some steps each, so that other load on the machine
affects all of them alike. A number is the median over the rounds; a ratio is relative to torch's
fused Adam in the same rounds. On CUDA, the times are those between events on the device. The output
also has the time that the host takes to launch a step, and the used share of the device's copy
bandwidth, if every element counts as often as the equations need it. Contenders that fail or do not
fit into the time limit are named and omitted. The models `1e5` to `1e8` are one layer of so many
elements, and are for a few contenders only. The script needs the extra `test`, but
pytorch_optimizer may be missing.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import aida_lightning
from aida_lightning import AdaBelief, Aida, LAdaBelief, LAdam, LAida, optim
from aida_lightning.example_modules import resnet34, vgg11


def transformer() -> nn.Module:
    """Build a Transformer of 6 + 6 layers of width 512 and an embedding, 49 M parameters."""
    return nn.ModuleList([nn.Transformer(512, 8, 6, 6, 2048), nn.Embedding(9500, 512)])


def llama() -> list[nn.Parameter]:
    """Build the 201 layers of TinyLlama, 1.1 billion parameters, without a module."""
    width, inner, of_keys, vocabulary = 2048, 5632, 256, 32_000
    square, narrow = (width, width), (of_keys, width)
    block = [square, narrow, narrow, square, (inner, width), (inner, width), (width, inner)]
    block += [(width,), (width,)]
    shapes = [(vocabulary, width), *(22 * block), (width,), (vocabulary, width)]
    return [nn.Parameter(torch.zeros(shape)) for shape in shapes]


MODELS: dict[str, Callable[..., list[nn.Parameter]]] = {
    "vgg11": lambda: list(vgg11().parameters()),
    "resnet34": lambda: list(resnet34().parameters()),
    "transformer": lambda: list(transformer().parameters()),
    "matrix": lambda: [nn.Parameter(torch.zeros(4096, 4096))],
    "llama": llama,
    "tiny": lambda: [nn.Parameter(torch.zeros(10)) for _ in range(10_000)],
}
SIZES = {f"1e{power}": 10**power for power in (5, 6, 7, 8)}
MODELS |= {name: lambda n=n: [nn.Parameter(torch.zeros(n))] for name, n in SIZES.items()}


class Contender(NamedTuple):
    """An optimizer, and how often its equations read or write an element of a layer's size."""

    build: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    accesses: int


def pytorch_optimizer_aida(params: list[nn.Parameter], foreach: bool) -> torch.optim.Optimizer:
    """Build the Aida of another package, which may be missing."""
    import pytorch_optimizer

    return pytorch_optimizer.Aida(params, foreach=foreach)


REFERENCE = "torch Adam fused"
FEW = [REFERENCE, "torch Adam loop", "Aida K=2 fused", "LAida fused", "Aida K=2 loop"]
# Adam, and what tracks a vector known beforehand, reads x, g, m, v and writes x, m, v. What sums
# over a layer first reads g and m and writes m before that; with one number per layer for v, it
# reads and writes none of it then.
CONTENDERS = {
    REFERENCE: Contender(lambda p: torch.optim.Adam(p, fused=True), 7),
    "torch Adam foreach": Contender(lambda p: torch.optim.Adam(p, foreach=True), 7),
    "Aida K=2 fused": Contender(lambda p: Aida(p, fused=True), 9),
    "LAida fused": Contender(lambda p: LAida(p, fused=True), 6),
    "LAdam fused": Contender(lambda p: LAdam(p, fused=True), 6),
    "Aida K=2 rows fused": Contender(lambda p: Aida(p, fused=True, partition="rows"), 9),
    "LAida rows fused": Contender(lambda p: LAida(p, fused=True, partition="rows"), 6),
    "LAdam rows fused": Contender(lambda p: LAdam(p, fused=True, partition="rows"), 6),
    "Aida K=2 rows loop": Contender(lambda p: Aida(p, foreach=False, partition="rows"), 9),
    "LAdam rows loop": Contender(lambda p: LAdam(p, foreach=False, partition="rows"), 6),
    "LAdam loop": Contender(lambda p: LAdam(p, foreach=False), 6),
    "AdamL rows fused": Contender(lambda p: optim.AdamL(p, fused=True, partition="rows"), 8),
    "Aida K=2 foreach": Contender(lambda p: Aida(p, foreach=True), 9),
    "LAida foreach": Contender(lambda p: LAida(p, foreach=True), 6),
    "LAdam foreach": Contender(lambda p: LAdam(p, foreach=True), 6),
    "Aida K=1 fused": Contender(lambda p: Aida(p, k=1, fused=True), 9),
    "Aida K=5 fused": Contender(lambda p: Aida(p, k=5, fused=True), 9),
    "LAdaBelief fused": Contender(lambda p: LAdaBelief(p, fused=True), 6),
    "AdaBelief fused": Contender(lambda p: AdaBelief(p, fused=True), 7),
    "AdaBeliefL fused": Contender(lambda p: optim.AdaBeliefL(p, fused=True), 8),
    "AdamL fused": Contender(lambda p: optim.AdamL(p, fused=True), 8),
    "SETAdam fused": Contender(lambda p: optim.SETAdam(p, fused=True), 9),
    "SETAdam foreach": Contender(lambda p: optim.SETAdam(p, foreach=True), 9),
    "SETAdam loop": Contender(lambda p: optim.SETAdam(p, foreach=False), 9),
    "torch Adam loop": Contender(lambda p: torch.optim.Adam(p, foreach=False), 7),
    "Aida K=2 loop": Contender(lambda p: Aida(p, foreach=False), 9),
    "LAida loop": Contender(lambda p: LAida(p, foreach=False), 6),
    "pytorch_optimizer Aida foreach": Contender(lambda p: pytorch_optimizer_aida(p, True), 9),
    "pytorch_optimizer Aida loop": Contender(lambda p: pytorch_optimizer_aida(p, False), 9),
}
WARM_UP, MOST_STEPS, ROUND_SECONDS = 2, 10, 0.2


class Found(NamedTuple):
    """What was measured of one model, by contender; lists have one entry per round."""

    seconds: dict[str, list[float]]
    host_seconds: dict[str, list[float]]
    left_out: dict[str, str]


def time_each(step: Callable[[], Any], steps: int, device: torch.device) -> tuple[float, float]:
    """Return the median of the seconds between steps, and the host's seconds per step."""
    on_device = device.type == "cuda"
    events = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)] if on_device else []
    settle(device)
    clock = [time.perf_counter()]
    for event in events[:1]:
        event.record()
    for index in range(steps):
        step()
        clock.append(time.perf_counter())
        for event in events[index + 1 : index + 2]:
            event.record()
    settle(device)
    seconds = [after - before for before, after in pairwise(clock)]
    between = [a.elapsed_time(b) / 1e3 for a, b in pairwise(events)] if on_device else seconds
    return statistics.median(between), statistics.median(seconds)


def settle(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copy_bandwidth(device: torch.device) -> float:
    """Return the bytes per second, read and written, of a copy within the device's memory."""
    source = torch.ones(1 << (29 if device.type == "cuda" else 24), device=device)
    target = torch.empty_like(source)
    seconds, _ = time_each(lambda: target.copy_(source), MOST_STEPS, device)
    return 2 * source.nbytes / seconds


def measure(
    params: list[nn.Parameter],
    contenders: list[str],
    device: torch.device,
    rounds: int,
    limit: float,
) -> Found:
    """Time steps of every contender, which begins anew in each round, within so many seconds."""
    found = Found({}, {}, {})
    end = time.monotonic() + limit
    for _ in range(rounds):
        for name in contenders:
            if name in found.left_out:
                continue
            if time.monotonic() > end:
                if name not in found.seconds:
                    found.left_out[name] = f"the {limit:g} s are over"
                continue
            try:
                seconds, on_host = time_contender(CONTENDERS[name].build(params), device)
            except Exception as error:
                found.left_out[name] = reason_of(error)
            else:
                found.seconds.setdefault(name, []).append(seconds)
                found.host_seconds.setdefault(name, []).append(on_host)
            # Its state is gone; what does not fit together with others fits alone.
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return found


def time_contender(optimizer: torch.optim.Optimizer, device: torch.device) -> tuple[float, float]:
    """Warm up, and time as many steps as fit into a round."""
    for _ in range(WARM_UP):
        settle(device)
        start = time.perf_counter()
        optimizer.step()
        settle(device)
    steps = int(ROUND_SECONDS / (time.perf_counter() - start))
    return time_each(optimizer.step, min(max(steps, 1), MOST_STEPS), device)


def first_step(device: torch.device) -> float | str:
    """Return the seconds of the first fused step, which compiles, or why there is none."""
    param = nn.Parameter(torch.zeros(1, device=device))
    param.grad = torch.zeros_like(param)
    start = time.perf_counter()
    try:
        Aida([param], fused=True).step()
        settle(device)
    except Exception as error:
        return reason_of(error)
    return round(time.perf_counter() - start, 2)


def reason_of(error: Exception) -> str:
    """Return an error's class and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def show(found: Found, count: int, bandwidth: float) -> None:
    """Print the table of one model."""
    print(f"{'':32} {'ms':>9} {'ratio':>7} {'host ms':>9} {'of copy':>7}")
    reference = found.seconds.get(REFERENCE)
    for name, times in found.seconds.items():
        # Of paired rounds, the median of the ratios is steadier than the ratio of medians.
        ratio = (
            f"{statistics.median(a / b for a, b in zip(times, reference, strict=False)):7.2f}"
            if reference
            else " " * 7
        )
        seconds = statistics.median(times)
        share = CONTENDERS[name].accesses * 4 * count / seconds / bandwidth
        on_host = statistics.median(found.host_seconds[name])
        print(f"{name:32} {1e3 * seconds:9.3f} {ratio} {1e3 * on_host:9.3f} {share:7.0%}")
    for name, reason in found.left_out.items():
        print(f"{name:32} left out: {reason}", flush=True)


def version_of(package: str) -> str:
    """Return the version of a package, or that it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    usual = [name for name in MODELS if name != "llama"]
    parser.add_argument("--models", nargs="+", choices=MODELS, default=usual)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=[*CONTENDERS])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--limit", type=float, default=600, help="seconds per model")
    parser.add_argument("--json", type=Path, help="a file to write the times to, in seconds")
    return parser


def main() -> None:
    """Measure, print the tables, and write what was measured as JSON."""
    arguments = make_parser().parse_args()

    device: torch.device = arguments.device
    on_device = device.type == "cuda"
    bandwidth = copy_bandwidth(device)
    setting = {
        "device": torch.cuda.get_device_name(device) if on_device else str(device),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": version_of("triton"),
        "aida-lightning": aida_lightning.__version__,
        "pytorch_optimizer": version_of("pytorch_optimizer"),
        "rounds": arguments.rounds,
        "first fused step, s": first_step(device),
        "copy, GB/s": round(bandwidth / 1e9, 1),
    }
    print("  ".join(f"{key}: {value}" for key, value in setting.items()))
    results: dict[str, Any] = {"setting": setting, "parameters": {}}
    results |= {field: {} for field in Found._fields}
    for model in arguments.models:
        with device:
            params = MODELS[model]()
        generator = torch.Generator(device).manual_seed(0)
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator, device=device)
        count = sum(param.numel() for param in params)
        print(f"\n{model}, {count:,} parameters", flush=True)
        contenders = [c for c in arguments.contenders if c in FEW or model not in SIZES]
        found = measure(params, contenders, device, arguments.rounds, arguments.limit)
        show(found, count, bandwidth)
        results["parameters"][model] = count
        for field, values in found._asdict().items():
            results[field][model] = values
        if arguments.json:  # after each model, for there may be no time for the next
            arguments.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
        del params


if __name__ == "__main__":
    main()
