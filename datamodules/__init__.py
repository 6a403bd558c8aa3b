"""LightningDataModules for the examples and experiments."""

from aida_lightning.datamodules._text import TextBatch
from aida_lightning.datamodules.cifar10 import CIFAR10DataModule
from aida_lightning.datamodules.cifar10_64 import CIFAR10x64DataModule, Digitsx64DataModule
from aida_lightning.datamodules.cifar100 import CIFAR100DataModule
from aida_lightning.datamodules.digits import DigitsDataModule
from aida_lightning.datamodules.multi30k import Multi30kDataModule
from aida_lightning.datamodules.penn_treebank import PennTreebankDataModule

__all__ = [
    "CIFAR10DataModule",
    "CIFAR10x64DataModule",
    "CIFAR100DataModule",
    "DigitsDataModule",
    "Digitsx64DataModule",
    "Multi30kDataModule",
    "PennTreebankDataModule",
    "TextBatch",
]
