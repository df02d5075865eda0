"""From texts to one trained dictionary in one call: the common case of harvest, training and calibration."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from sae_lens import SAE

from diffsae_lens._checks import check_choice, check_count, check_number
from diffsae_lens._errors import InvalidValueError, OccupiedPathError
from diffsae_lens._typed import check_fields, typed
from diffsae_lens.pair._chat import Text
from diffsae_lens.pair._hook import VirtualHook
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.pair._texts import TokenisedTexts
from diffsae_lens.pair._tokens import TokenPolicy
from diffsae_lens.training._activations import PairedActivations
from diffsae_lens.training._harvest import HarvestConfig, harvest
from diffsae_lens.training._recipes import crosscoder, diff_sae, short_training
from diffsae_lens.training._run_config import TrainingRun
from diffsae_lens.training._runner import train_dictionaries
from diffsae_lens.training._stream import stream
from diffsae_lens.training._stream_reader import StreamConfig

Kind = Literal["diff", "crosscoder"]
"""Kind of dictionary: a Diff-SAE on finetuned - base, or a crosscoder on [base ; finetuned]."""

_RECIPES = {"diff": diff_sae, "crosscoder": crosscoder}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How `train` reads texts and trains."""

    context_size: int = 128
    """Number of tokens read per text; the rest is cut off."""
    batch_size: int = 512
    """Tokens per step."""
    lr: float = 2e-3
    """Peak learning rate: warm-up over a tenth of the steps, linear decay to 0 over the second half."""
    calibration_fraction: float = 0.1
    """Share of a list's texts held out from training; the threshold is set on them."""
    harvest: HarvestConfig = field(default_factory=HarvestConfig)
    """How activations are read and stored, and how many leading tokens are left out."""
    stream: StreamConfig = field(default_factory=StreamConfig)
    """How texts that are not a list are held out and mixed."""

    def __post_init__(self) -> None:
        """Refuse invalid sizes."""
        check_fields(self)
        check_count("context_size", self.context_size, at_least=2)
        check_count("batch_size", self.batch_size)
        check_number("lr", self.lr, low=0.0, low_open=True)
        check_number(
            "calibration_fraction", self.calibration_fraction,
            low=0.0, high=1.0, low_open=True, high_open=True,
        )  # fmt: skip


@typed
def train(  # noqa: PLR0913
    pair: HookedModelPair,
    texts: Iterable[Text | Mapping[str, Any]],
    *,
    site: str,
    kind: Kind = "diff",
    d_sae: int,
    k: int = 32,
    n_steps: int = 400,
    seed: int = 0,
    config: TrainConfig | None = None,
    path: str | Path,
) -> SAE:
    """Train one dictionary on texts: read both models, train, calibrate on held-out texts, save, load.

    The dictionary is a BatchTopK one, on scaled differences, or on activations centred and scaled per
    model; the saved one takes raw activations. Interrupted work is resumed, and existing results are read:
    a list's activations by every call with the same texts and site (`diff` and `crosscoder` share them, as
    do all sizes and seeds), the dictionary by the same call.

    Args:
        pair: the two models.
        texts: texts to compare the models on, such as prompts of the behaviour among ordinary ones. A list
            is shuffled into one random order, the same for every call, before some are held out; its
            activations are stored. Any other iterable, such as a dataset or a generator, is read once, in
            its own order, while the dictionary trains, and only checkpoints are stored; see `stream`.
        site: the models' hook, such as `blocks.18.hook_resid_post`; the pair must be built for it.
        kind: `diff` for a Diff-SAE, `crosscoder` for a crosscoder.
        d_sae: number of features.
        k: mean number of features that fire per token.
        n_steps: number of training steps of `config.batch_size` tokens each. A list is read repeatedly if
            necessary.
        seed: seed of the initialisation and of the batch order.
        config: how texts are read, and the optimiser's settings.
        path: the folder for `activations-<site>` (only for a list; 8 * d_model bytes per token) and
            `<kind>-<site>-<d_sae>-k<k>-seed<seed>`, the dictionary.

    Returns:
        The dictionary, as returned by `load`.

    Raises:
        TypeError: an argument that is not a pair, texts or a count.
        ValueError: a site that the pair was not built for, an unknown kind, counts out of range, a list
            with an empty text or too few tokens for a batch, an iterable that ends before the training does
            or does not repeat its first texts, or a `path` with results of other texts or settings.
        OSError: the disk is full or not writable.

    Examples:
        >>> train(pair, texts, site="blocks.18.hook_resid_post", d_sae=4096,
        ...       path="runs/first")                                          # doctest: +SKIP
    """
    check_choice("kind", kind, get_args(Kind))
    if site not in pair.hook_names:
        raise InvalidValueError(
            f"`site` must be one of the pair's hooks {list(pair.hook_names)}, got {site!r}; build the "
            "pair with the hook you need"
        )
    d_sae = check_count("d_sae", d_sae)
    k = check_count("k", k)
    if k > d_sae:
        raise InvalidValueError(f"`k` must be at most `d_sae`, which is {d_sae}, got {k}")
    n_steps = check_count("n_steps", n_steps)
    seed = check_count("seed", seed, at_least=0)
    config = config or TrainConfig()
    path = Path(path).expanduser()
    if path.is_file():
        raise OccupiedPathError(f"`path` {path} is a file; name a folder")
    name = f"{kind}-{site}-{d_sae}-k{k}-seed{seed}"
    run = TrainingRun(
        trainer=short_training(
            n_steps=n_steps,
            checkpoints=path / f"checkpoints-{name}",
            batch_size=config.batch_size,
            lr=config.lr,
            device=str(pair.device),
        ),
        calibration_fraction=config.calibration_fraction,
        seed=seed,
    )
    trained = _RECIPES[kind](
        site, d_model=pair.width(site), d_sae=d_sae, k=k, device=str(pair.device)
    )
    if isinstance(texts, Iterable) and not isinstance(texts, Collection):
        activations = stream(
            pair,
            texts,
            hook_names=[trained.hook.name],
            context_size=config.context_size,
            config=config.stream,
            harvest=config.harvest,
        )
    else:
        activations = _harvested(pair, texts, path, trained.hook, run, config)
    return train_dictionaries({name: trained}, activations, path, run=run)[name]


def _harvested(
    pair: HookedModelPair,
    texts: Any,
    path: Path,
    hook: VirtualHook,
    run: TrainingRun,
    config: TrainConfig,
) -> PairedActivations:
    """Harvest the activations of a list of texts to disk, or open them if they exist."""
    read = _shuffled(pair, texts, config)
    _check_enough(pair, read, config, run)
    activations = harvest(
        pair,
        read.tokens,
        path / f"activations-{hook.site}",
        hook_names=[hook.with_view("concat").name],
        config=config.harvest,
    )
    return activations.showing([hook])


def _shuffled(pair: HookedModelPair, texts: Sequence[Text], config: TrainConfig) -> TokenisedTexts:
    """Tokenise the texts in a fixed random order, so that the held-out ones are of all kinds."""
    max_tokens = min(config.context_size, pair.cfg.n_ctx)
    read = pair.tokenise(texts, name="texts", max_tokens=max_tokens)
    generator = torch.Generator().manual_seed(0)
    return read.take(torch.randperm(len(read), generator=generator).tolist())


def _check_enough(
    pair: HookedModelPair, read: TokenisedTexts, config: TrainConfig, run: TrainingRun
) -> None:
    """Refuse texts with too few tokens to train or calibrate on, before anything runs."""
    policy = TokenPolicy(
        skip_positions=config.harvest.skip_positions,
        ignored_token_ids=tuple(pair.tokenizer.all_special_ids),
    )
    counted = policy.counted(read.tokens, read.positions).sum(1)
    n_training = run.n_training(len(read))
    if counted[:n_training].sum() < config.batch_size or not counted[n_training:].sum():
        raise InvalidValueError(
            f"`texts` give {int(counted[:n_training].sum())} tokens to train on and "
            f"{int(counted[n_training:].sum())} to calibrate on, special and leading ones aside, and a "
            f"batch has {config.batch_size}; give more or longer texts, or a smaller `config.batch_size`"
        )
