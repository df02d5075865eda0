"""Model diffing with sparse dictionaries, for SAELens and TransformerLens."""

from importlib.metadata import version

from diffsae_lens.evaluation.activations import (
    Positions,
    Reader,
    feature_activations,
    read_prompts,
)
from diffsae_lens.evaluation.isolation import bis
from diffsae_lens.evaluation.ranking import auroc, average_precision
from diffsae_lens.interventions.features import ablate_features, steer, swap_to_base
from diffsae_lens.interventions.likelihood import attribute_features, log_odds
from diffsae_lens.interventions.rates import attack_rate, attack_rates, complete
from diffsae_lens.loading import load_pair
from diffsae_lens.organisms.finetune import OrganismConfig, finetune
from diffsae_lens.organisms.judge import judge_completion
from diffsae_lens.organisms.prompts import make_samples, minimal_pairs
from diffsae_lens.pair import HookedModelPair
from diffsae_lens.training.calibration import calibrate_threshold
from diffsae_lens.training.harvest import harvest
from diffsae_lens.training.runner import (
    CrosscoderRunnerConfig,
    DiffSAERunnerConfig,
    TrainingRun,
    train_dictionaries,
)

__version__ = version("diffsae-lens")

__all__ = [
    "CrosscoderRunnerConfig",
    "DiffSAERunnerConfig",
    "HookedModelPair",
    "OrganismConfig",
    "Positions",
    "Reader",
    "TrainingRun",
    "ablate_features",
    "attack_rate",
    "attack_rates",
    "attribute_features",
    "auroc",
    "average_precision",
    "bis",
    "calibrate_threshold",
    "complete",
    "feature_activations",
    "finetune",
    "harvest",
    "judge_completion",
    "load_pair",
    "log_odds",
    "make_samples",
    "minimal_pairs",
    "read_prompts",
    "steer",
    "swap_to_base",
    "train_dictionaries",
]
