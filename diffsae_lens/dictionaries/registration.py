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
    """Register an inference or a training class; registering the same one again replaces it.

    SAELens refuses any second registration, which breaks re-run cells and reloaded modules. Another
    class of the same name is still refused.
    """
    architecture = config.architecture()
    for registry in (SAE_TRAINING_CLASS_REGISTRY, SAE_CLASS_REGISTRY):
        known = registry.get(architecture, (None,))[0]
        same = known is not None and known.__qualname__ == sae.__qualname__
        if same and known.__module__ == sae.__module__:
            del registry[architecture]
    if issubclass(sae, TrainingSAE) and issubclass(config, TrainingSAEConfig):
        register_sae_training_class(architecture, sae, config)
    else:
        register_sae_class(architecture, sae, config)
