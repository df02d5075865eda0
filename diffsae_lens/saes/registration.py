"""Registration of our classes with SAELens, so that its loaders and runners know them."""

from sae_lens import (
    SAE,
    SAEConfig,
    TrainingSAE,
    TrainingSAEConfig,
    register_sae_class,
    register_sae_training_class,
)
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY


def register(sae: type[SAE], config: type[SAEConfig]) -> None:
    """Register an inference or a training class; a second registration replaces the first.

    SAELens refuses a second one, which breaks re-run cells and reloaded modules.
    """
    architecture = config.architecture()
    if issubclass(sae, TrainingSAE) and issubclass(config, TrainingSAEConfig):
        SAE_TRAINING_CLASS_REGISTRY.pop(architecture, None)
        register_sae_training_class(architecture, sae, config)
    else:
        SAE_CLASS_REGISTRY.pop(architecture, None)
        register_sae_class(architecture, sae, config)
