"""Print the memory of each optimizer's state, and the additional memory of one step.

    python benchmarks/memory.py

The numbers are multiples of one layer's size, for three layers of 1024 x 1024 in float32 on the
CPU. They come from the profiler's log of the allocator.
"""

import torch
from torch import nn
from torch.profiler import profile

from aida_lightning import build_optimizer

MEMBERS = [
    "aida", "laida", "aidagrad", "adabelief", "adabeliefl", "ladabelief", "adamplus", "adaml",
    "ladam", "setadam", "adam",
]  # fmt: skip
ROWS = {"partition": "rows"}  # the cut is that of the layers' 1,024 rows
CASES = [*((name, {}) for name in MEMBERS), ("aida", ROWS), ("ladam", ROWS), ("laida", ROWS)]
KERNELS = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


def peak_of_a_step(optimizer: torch.optim.Optimizer) -> int:
    """Give the most bytes that a step holds at once beside what was there before it."""
    with profile(profile_memory=True) as log:
        optimizer.step()
    events = [e for e in log.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def main() -> None:
    """Print one row per optimizer."""
    print(f"| optimizer | state | {' | '.join(f'{kernel}, peak' for kernel in KERNELS)} |")
    print("| --- |" + " ---: |" * (1 + len(KERNELS)))
    for name, chosen in CASES:
        peaks = []
        for options in KERNELS.values():
            params = [nn.Parameter(torch.zeros(1024, 1024)) for _ in range(3)]
            optimizer = build_optimizer(name, params, weight_decay=0.1, **options, **chosen)
            for param in params:
                param.grad = torch.randn_like(param)
            optimizer.step()
            peaks.append(peak_of_a_step(optimizer) / params[0].nbytes)
        state = sum(v.nbytes for layer in optimizer.state.values() for v in layer.values())
        total = sum(param.nbytes for param in params)
        shown = f"`{name}`" + "".join(f', `{key}="{value}"`' for key, value in chosen.items())
        print(f"| {shown} | {state / total:.3f} | {' | '.join(f'{p:.2f}' for p in peaks)} |")


if __name__ == "__main__":
    main()
