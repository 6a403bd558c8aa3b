"""LightningModules and networks for the examples and experiments."""

from aida_lightning.example_modules.awd_lstm import AWDLSTM
from aida_lightning.example_modules.dcgan import dcgan_critic, dcgan_generator
from aida_lightning.example_modules.fid import FIDMonitor
from aida_lightning.example_modules.fid_features import ClassifierFeatures
from aida_lightning.example_modules.image_classifier import ImageClassifier
from aida_lightning.example_modules.language_model import LanguageModel
from aida_lightning.example_modules.networks import NETWORKS, resnet34, vgg11
from aida_lightning.example_modules.transformer import Transformer
from aida_lightning.example_modules.translation_model import InverseSqrtLR, TranslationModel
from aida_lightning.example_modules.wgan_gp import WGANGP, gradient_penalty

__all__ = [
    "AWDLSTM",
    "NETWORKS",
    "WGANGP",
    "ClassifierFeatures",
    "FIDMonitor",
    "ImageClassifier",
    "InverseSqrtLR",
    "LanguageModel",
    "Transformer",
    "TranslationModel",
    "dcgan_critic",
    "dcgan_generator",
    "gradient_penalty",
    "resnet34",
    "vgg11",
]
