"""Pictures: how a file becomes an example, an example a batch, and which networks read it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # mypy holds the files to their contracts
    from .. import contract
    from . import augment, duplicates, examples, files, networks, preprocessing, rules, sample, settings, weights

    _SETTINGS: contract.Settings = settings
    _FILES: contract.Files = files
    _RULES: contract.Rules = rules
    _DUPLICATES: contract.Duplicates = duplicates
    _PREPROCESSING: contract.Preprocessing = preprocessing
    _EXAMPLES: contract.Examples = examples
    _NETWORKS: contract.Networks = networks
    _WEIGHTS: contract.Weights = weights
    _AUGMENTATION: contract.Augmentation = augment
    _SAMPLE: contract.Sample = sample
