"""Time one optimizer step against torch's Adam and pytorch_optimizer's Aida, in one process.

    python benchmarks/step.py [--models vgg11 resnet34 transformer matrix tiny] [--json step.json]

Every contender steps in each round, in turns, so that what else the machine does hits all of them
alike; a number is the median over the rounds, a ratio that to torch's fused Adam in the same
rounds. The models `1e5` to `1e8`, one layer of so many elements, are for a few contenders only. It
needs the extras `test`.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version

import pytorch_optimizer
import torch
from torch import nn
from torch.utils.benchmark import Timer

import aida_lightning
from aida_lightning import AdaBelief, Aida, LAdaBelief, LAdam, LAida, optim
from aida_lightning.example_modules import resnet34, vgg11


def transformer() -> nn.Module:
    """Build a Transformer of 6 + 6 layers of width 512 and an embedding, 49 M parameters."""
    return nn.ModuleList([nn.Transformer(512, 8, 6, 6, 2048), nn.Embedding(9500, 512)])


MODELS: dict[str, Callable[..., list[nn.Parameter]]] = {
    "vgg11": lambda: list(vgg11().parameters()),
    "resnet34": lambda: list(resnet34().parameters()),
    "transformer": lambda: list(transformer().parameters()),
    "matrix": lambda: [nn.Parameter(torch.zeros(4096, 4096))],
    "tiny": lambda: [nn.Parameter(torch.zeros(10)) for _ in range(10_000)],
}
SIZES = {f"1e{power}": 10**power for power in (5, 6, 7, 8)}
MODELS |= {name: lambda n=n: [nn.Parameter(torch.zeros(n))] for name, n in SIZES.items()}
REFERENCE = "torch Adam fused"
FEW = [REFERENCE, "torch Adam loop", "Aida K=2 fused", "LAida fused", "Aida K=2 loop"]
CONTENDERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    REFERENCE: lambda p: torch.optim.Adam(p, fused=True),
    "torch Adam foreach": lambda p: torch.optim.Adam(p, foreach=True),
    "torch Adam loop": lambda p: torch.optim.Adam(p, foreach=False),
    "Aida K=1 fused": lambda p: Aida(p, k=1, fused=True),
    "Aida K=2 fused": lambda p: Aida(p, fused=True),
    "Aida K=5 fused": lambda p: Aida(p, k=5, fused=True),
    "LAida fused": lambda p: LAida(p, fused=True),
    "LAdaBelief fused": lambda p: LAdaBelief(p, fused=True),
    "LAdam fused": lambda p: LAdam(p, fused=True),
    "AdaBelief fused": lambda p: AdaBelief(p, fused=True),
    "AdaBeliefL fused": lambda p: optim.AdaBeliefL(p, fused=True),
    "Aida K=2 loop": lambda p: Aida(p, foreach=False),
    "Aida K=2 foreach": lambda p: Aida(p, foreach=True),
    "LAida loop": lambda p: LAida(p, foreach=False),
    "pytorch_optimizer Aida loop": lambda p: pytorch_optimizer.Aida(p, foreach=False),
    "pytorch_optimizer Aida foreach": lambda p: pytorch_optimizer.Aida(p, foreach=True),
}


def measure(model: str, contenders: list[str], rounds: int) -> dict[str, list[float]]:
    """Give each contender's seconds a step, one a round."""
    params = MODELS[model]()
    generator = torch.Generator().manual_seed(0)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)
    timers = {
        name: Timer(
            "optimizer.step()",
            globals={"optimizer": CONTENDERS[name](params)},
            num_threads=torch.get_num_threads(),
        )
        for name in contenders
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, timer in timers.items():
            times[name].append(timer.timeit(1).median)  # after two steps to warm up
    return times


def main() -> None:
    """Measure, print one table a model, and write what was measured as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=[*CONTENDERS])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", help="a file to write the times to, in seconds")
    arguments = parser.parse_args()

    start = time.perf_counter()
    warm = Aida([nn.Parameter(torch.zeros(1))], fused=True)
    warm.param_groups[0]["params"][0].grad = torch.zeros(1)
    warm.step()
    setting = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "aida-lightning": aida_lightning.__version__,
        "pytorch_optimizer": version("pytorch_optimizer"),
        "rounds": arguments.rounds,
        "first fused step, s": round(time.perf_counter() - start, 2),
    }
    print("  ".join(f"{key}: {value}" for key, value in setting.items()))
    results: dict[str, dict[str, list[float]]] = {}
    for model in arguments.models:
        count = sum(p.numel() for p in MODELS[model]())
        contenders = [c for c in arguments.contenders if c in FEW or model not in SIZES]
        results[model] = measure(model, contenders, arguments.rounds)
        reference = results[model].get(REFERENCE)
        print(f"\n{model}, {count:,} parameters\n{'':32} {'ms':>9} {'ratio':>7}")
        for name, times in results[model].items():
            # Of paired rounds, the median of the ratios is steadier than the ratio of medians.
            ratio = (
                f"{statistics.median(a / b for a, b in zip(times, reference, strict=True)):7.2f}"
                if reference
                else ""
            )
            print(f"{name:32} {1e3 * statistics.median(times):9.2f} {ratio}")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"setting": setting, "seconds": results}, file, indent=1)


if __name__ == "__main__":
    main()
