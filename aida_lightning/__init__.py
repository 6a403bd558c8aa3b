"""The Aida family of layerwise-adaptive optimizers for PyTorch Lightning."""

from importlib.metadata import version

__version__ = version("aida-lightning")
