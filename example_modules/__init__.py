"""LightningModules and networks of the examples and experiments."""

from aida_lightning.example_modules.image_classifier import ImageClassifier
from aida_lightning.example_modules.networks import NETWORKS, resnet34, vgg11

__all__ = ["NETWORKS", "ImageClassifier", "resnet34", "vgg11"]
