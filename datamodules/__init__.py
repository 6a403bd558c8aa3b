"""LightningDataModules of the examples and experiments."""

from aida_lightning.datamodules.cifar10 import CIFAR10DataModule
from aida_lightning.datamodules.digits import DigitsDataModule

__all__ = ["CIFAR10DataModule", "DigitsDataModule"]
