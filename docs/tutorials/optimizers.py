"""Train one network with several optimizers by name, and see what a name and its options do.

Run: python docs/tutorials/optimizers.py
"""

import copy

import torch
from torch import Tensor, nn

from aida_lightning import build_optimizer, list_optimizers


def task() -> tuple[nn.Module, Tensor, Tensor]:
    """Build a network and a function for it to learn: the sine of a sum of 8 numbers."""
    torch.manual_seed(0)
    inputs = torch.randn(256, 8)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    return model, inputs, inputs.sum(1, keepdim=True).sin()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
    """Take 200 steps on all examples at once, and return the last loss."""
    for _ in range(200):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
    return loss.item()


def main() -> None:
    """Compare from one start."""
    start, x, y = task()
    print("Names:", ", ".join(list_optimizers()))

    for name, options in [
        ("aida", {"k": 1}),
        ("aida", {"k": 2}),
        ("AdaBelief", {}),  # names ignore case and punctuation
        ("Adam+", {}),
        ("adam", {}),
    ]:
        model = copy.deepcopy(start)
        optimizer = build_optimizer(name, model, lr=1e-2, **options)
        print(f"{name:9} {options!s:9} loss {train(model, optimizer, x, y):.4f}")

    # Half of Adam's state: one number per layer in place of a second vector.
    model = copy.deepcopy(start)
    optimizer = build_optimizer("laida", model, weight_decay=1e-2, no_decay_1d=True)
    train(model, optimizer, x, y)
    numbers = sum(value.numel() for state in optimizer.state.values() for value in state.values())
    print(f"laida holds {numbers} numbers for {sum(p.numel() for p in model.parameters())}")
    for group in optimizer.param_groups:
        print(f"  weight decay {group['weight_decay']}: {', '.join(group['param_names'])}")

    # A mistake is named, with what would be right.
    for name, options in [("aidda", {}), ("aida", {"momentum": 0.9}), ("aida", {"k": -1})]:
        try:
            build_optimizer(name, model, **options)
        except (TypeError, ValueError) as error:
            print(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
