"""Registration of our classes with SAELens, so that its loaders and runners know them."""

from sae_lens import (
    SAE,
    SAEConfig,
    TrainingSAE,
    TrainingSAEConfig,
    register_sae_class,
    register_sae_training_class,
)

from diffsae_lens import _hosts


def register(sae: type[SAE], config: type[SAEConfig]) -> None:
    """Register an inference or a training class; registering the same one again replaces it.

    SAELens refuses any second registration, which breaks re-run cells and reloaded modules. Another
    class of the same name is still refused.
    """
    architecture = config.architecture()
    _hosts.forget_registration(architecture, sae)
    if issubclass(sae, TrainingSAE) and issubclass(config, TrainingSAEConfig):
        register_sae_training_class(architecture, sae, config)
    else:
        register_sae_class(architecture, sae, config)
