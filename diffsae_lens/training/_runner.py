"""Train Diff-SAEs and crosscoders in lockstep on one harvest or stream, with SAELens's trainers."""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import wandb
from sae_lens import SAE, TrainingSAE
from sae_lens.training.multi_sae_trainer import MultiSAETrainer

from diffsae_lens._artifact import find, locked
from diffsae_lens._checks import check_folder_name, check_items
from diffsae_lens._errors import InvalidValueError, OccupiedPathError
from diffsae_lens._hosts import normalize_with
from diffsae_lens._typed import typed
from diffsae_lens.dictionaries._sparse import Workspace
from diffsae_lens.dictionaries._topk import SparseStep
from diffsae_lens.training._checkpoints import Checkpoints, estimates_norms, go_on
from diffsae_lens.training._export import export, record_of
from diffsae_lens.training._mixing import Feed
from diffsae_lens.training._normalization import activation_statistics, as_whitening, describe
from diffsae_lens.training._optimizer import fuse_adam
from diffsae_lens.training._run_config import (
    CrosscoderRunnerConfig,
    DictionaryRunnerConfig,
    DiffSAERunnerConfig,
    FinetunedSAERunnerConfig,
    TrainingRun,
)
from diffsae_lens.training._stream import Activations

__all__ = [
    "CrosscoderRunnerConfig", "DictionaryRunnerConfig", "DiffSAERunnerConfig",
    "FinetunedSAERunnerConfig", "TrainingRun", "train_dictionaries",
]  # fmt: skip


_NOT_OF_THE_RESULT = (
    "device",
    "n_checkpoints",
    "checkpoint_path",
    "save_final_checkpoint",
    "logger",
)
"""Fields of SAETrainerConfig that do not affect the dictionaries."""


@typed
def train_dictionaries(
    configs: Mapping[str, DictionaryRunnerConfig],
    activations: Activations,
    path: str | Path,
    *,
    run: TrainingRun,
) -> dict[str, SAE]:
    """Train several dictionaries in lockstep, on the same tokens in the same order.

    SAELens's `MultiSAETrainer` does the training. BatchTopK dictionaries are then given the threshold at
    which k features fire per held-out token on average (SAELens's own is a moving average that has not
    converged after a short run), and everything is saved in SAELens's inference format. An existing
    dictionary is loaded, not trained again; a damaged one is set aside and made again. An interrupted run
    resumes from its newest checkpoint, and a finished one removes its checkpoints.

    Args:
        configs: the dictionaries by name; the name becomes the folder name.
        activations: a harvest or a stream with every hook point that the configs read.
        path: folder for the dictionaries, each in `<path>/<name>`.
        run: training length, batch size, seed.

    Returns:
        The inference dictionaries by name, as returned by `SAE.load_from_disk`.

    Raises:
        ValueError: no configs, a name that is not valid for a folder, a hook point that was not
            harvested, a `d_in` that does not fit, a folder or a checkpoint with other settings, a training
            run that diverged, or a stream that ends too early or does not repeat its first texts.
        OSError: the disk is full or not writable.
    """
    path = Path(path).expanduser()
    if path.is_file():
        raise OccupiedPathError(f"`path` {path} is a file; name a folder for the dictionaries")
    _check(configs, activations)
    recipes = {name: _recipe(config, configs, activations, run) for name, config in configs.items()}
    checkpoints = Checkpoints(run.trainer.checkpoint_path, recipes)
    if _missing(recipes, path):
        with locked(path):
            missing = {name: configs[name] for name in _missing(recipes, path)}
            if missing:
                with checkpoints.claimed():
                    _train(missing, recipes, activations, path, run, checkpoints)
    else:
        checkpoints.clean_up()
    return {name: SAE.load_from_disk(path / name, device=run.trainer.device) for name in configs}


def _check(configs: Mapping[str, DictionaryRunnerConfig], activations: Activations) -> None:
    if not configs:
        raise InvalidValueError("`configs` is empty: name at least one dictionary")
    check_items("configs", configs.values(), DictionaryRunnerConfig)
    widths = activations.widths
    for name, config in configs.items():
        check_folder_name("configs", name)
        hook_name = config.hook.name
        if hook_name not in activations.hook_names:
            raise InvalidValueError(
                f"`configs[{name!r}]` reads {hook_name!r}, which was not harvested "
                f"(there are {list(activations.hook_names)})"
            )
        if config.sae.d_in != widths[hook_name]:
            raise InvalidValueError(
                f"`configs[{name!r}].sae.d_in` is {config.sae.d_in}, but {hook_name!r} is "
                f"{widths[hook_name]} wide"
            )


def _recipe(
    config: DictionaryRunnerConfig,
    configs: Mapping[str, DictionaryRunnerConfig],
    activations: Activations,
    run: TrainingRun,
) -> dict[str, Any]:
    """Return everything that a dictionary depends on."""
    trainer = {k: v for k, v in vars(run.trainer).items() if k not in _NOT_OF_THE_RESULT}
    sae = {k: v for k, v in config.sae.to_dict().items() if k not in ("device", "metadata")}
    return {
        "kind": "dictionary",
        "hook_name": config.hook.name,
        "sae": sae,
        "normalization": config.normalization and asdict(config.normalization),
        "trainer": trainer,
        "seed": run.seed,
        "calibration_fraction": run.calibration_fraction,
        # A norm estimate for one dictionary consumes the first batches of all trained with it.
        "estimates_norms": estimates_norms(c.sae for c in configs.values()),
        # Other hook points of the same harvest do not matter.
        "harvest": {k: v for k, v in activations.recipe.items() if k != "hook_names"},
    }


def _missing(recipes: Mapping[str, Mapping[str, Any]], path: Path) -> list[str]:
    """Return the dictionaries that have to be trained; refuse those with other settings."""
    return [name for name, recipe in recipes.items() if find(path / name, recipe) is None]


def _train(
    configs: Mapping[str, DictionaryRunnerConfig],
    recipes: Mapping[str, Mapping[str, Any]],
    activations: Activations,
    path: Path,
    run: TrainingRun,
    checkpoints: Checkpoints,
) -> None:
    """Train and save dictionaries, regardless of the caller's gradient mode."""
    with (
        torch.random.fork_rng(),
        torch.inference_mode(False),
        torch.enable_grad(),
        _wandb_run(run, recipes),
        closing(activations.feed(run)) as feed,
    ):
        trainer = _trainer(configs, activations, feed, run, checkpoints)
        if not estimates_norms(c.sae for c in configs.values()):
            n_drawn = run.trainer.n_batches_for_norm_estimate
            drawn_for_others = any(recipes[name]["estimates_norms"] for name in configs)
            for _ in range(n_drawn if drawn_for_others else 0):
                next(feed)
        newest = checkpoints.newest()
        if newest is not None:
            go_on(trainer, feed, newest)
        with checkpoints.naming():
            trained = trainer.fit()
    diverged = [name for name, sae in trained.items() if not _is_finite(sae)]
    if diverged:
        checkpoints.remove()
        raise InvalidValueError(
            f"the training diverged: the weights of {', '.join(diverged)} are not finite, and nothing was "
            f"saved. Give a smaller `trainer.lr` (it was {run.trainer.lr:g}) or a longer warm-up"
        )
    held_out = cache(partial(activations.held_out, run))
    for name, sae in trained.items():
        export(sae, configs[name], recipes[name], held_out, path / name, run)


@contextmanager
def _wandb_run(run: TrainingRun, recipes: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Open a W&B run if one is requested and none is open, and close it at the end."""
    logging_config = run.trainer.logger
    if not logging_config.log_to_wandb or wandb.run is not None:
        yield
        return
    opened = wandb.init(
        project=logging_config.wandb_project,
        entity=logging_config.wandb_entity,
        name=logging_config.run_name,
        id=logging_config.wandb_id,
        config=dict(recipes),
    )
    with opened:
        yield


def _is_finite(sae: TrainingSAE) -> bool:
    return all(value.isfinite().all() for value in sae.state_dict().values())


def _trainer(
    configs: Mapping[str, DictionaryRunnerConfig],
    activations: Activations,
    feed: Feed,
    run: TrainingRun,
    checkpoints: Checkpoints,
) -> MultiSAETrainer:
    """Return SAELens's trainer with freshly initialised dictionaries."""
    saes: dict[str, TrainingSAE] = {}
    workspace = Workspace()
    for name, config in configs.items():
        torch.manual_seed(run.seed)
        sae = TrainingSAE.from_dict(config.sae.to_dict()).to(run.trainer.device)
        if isinstance(sae, SparseStep):
            sae.workspace = workspace  # shared, since they step in turn
        saes[name] = sae

    def save(checkpoint_path: Path | None) -> None:
        if checkpoint_path is not None:
            feed.save(checkpoint_path)
        checkpoints.seal(checkpoint_path)

    trainer = MultiSAETrainer(
        cfg=run.trainer,
        saes=saes,
        hook_names={name: config.hook.name for name, config in configs.items()},
        data_provider=feed,
        save_checkpoint_fn=save,
    )
    _prepare(trainer, configs, activations, run)
    return trainer


def _prepare(
    trainer: MultiSAETrainer,
    configs: Mapping[str, DictionaryRunnerConfig],
    activations: Activations,
    run: TrainingRun,
) -> None:
    """Give every dictionary's trainer the fused optimiser and its normalisation, and write its record."""
    n_parts = {c.hook.name: c.hook.spec.n_models for c in configs.values() if c.normalization}
    first = activations.first_batches(run) if n_parts else ()
    statistics = activation_statistics(first, n_parts=n_parts)
    for name, config in configs.items():
        one, normalization = trainer.trainers[name], None
        fuse_adam(one)
        if config.normalization is not None:
            of_hook = statistics[config.hook.name]
            normalize_with(one, as_whitening(of_hook, config.normalization))
            normalization = describe(of_hook, config.normalization)
        record_of(config, activations, run, normalization).write_to(trainer.saes[name].cfg)
