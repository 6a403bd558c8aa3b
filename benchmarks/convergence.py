"""Print how close each member gets to the optimum of torch's two small test problems.

    python benchmarks/convergence.py

The learning rate falls linearly to 0. Rosenbrock is (1 - x)^2 + 100 (y - x^2)^2 and starts from
(1.5, 1.5). The quadratic is x^2 + 10 y^2 and starts from (1.5, -1).
"""

import math

import torch
from torch import Tensor, nn

from aida_lightning import build_optimizer

MEMBERS = [
    "adamplus", "adaml", "ladam", "adabelief", "adabeliefl", "ladabelief", "aida", "laida",
    "aidagrad", "setadam", "adam",
]  # fmt: skip


def quadratic(x: Tensor) -> Tensor:
    """Give x^2 + 10 y^2."""
    return x[0] ** 2 + 10 * x[1] ** 2


def rosenbrock(x: Tensor) -> Tensor:
    """Give (1 - x)^2 + 100 (y - x^2)^2."""
    return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


PROBLEMS = [
    (quadratic, [1.5, -1.0], [0.0, 0.0], 0.1, 300),
    (rosenbrock, [1.5, 1.5], [1.0, 1.0], 0.3, 1500),
]


def main() -> None:
    """Print the distances to the optimum as a table."""
    print("| member | quadratic, 300 steps | Rosenbrock, 1,500 steps |\n| --- | --- | --- |")
    for name in MEMBERS:
        distances = []
        for problem, start, optimum, lr, steps in PROBLEMS:
            param = nn.Parameter(torch.tensor(start))
            optimizer = build_optimizer(name, [param], lr=lr)
            for step in range(steps):
                optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
                optimizer.zero_grad()
                problem(param).backward()
                optimizer.step()
            distances.append(math.dist(param.tolist(), optimum))
        print(f"| `{name}` | {distances[0]:.1e} | {distances[1]:.1e} |")


if __name__ == "__main__":
    main()
