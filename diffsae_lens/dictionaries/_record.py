"""What a dictionary's config records about its training; no other code touches that record.

The record is in SAELens's `cfg.metadata`, partly in SAELens's own fields (`hook_name`, `prepend_bos`, ...)
and partly in our mapping `diffsae_lens`. A stock dictionary has only the former.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sae_lens import SAE, SAEConfig

from diffsae_lens._errors import InvalidValueError
from diffsae_lens._tensor_checks import shown
from diffsae_lens.dictionaries._crosscoder import TwoModels
from diffsae_lens.pair._hook import VirtualHook
from diffsae_lens.pair._metadata import PairMetadata
from diffsae_lens.pair._tokens import EVERY_TOKEN, TokenPolicy
from diffsae_lens.pair._views import VIEWS, View


@dataclass(frozen=True, kw_only=True)
class DictionaryRecord:
    """What a dictionary reads and how it was trained; None for what was not recorded."""

    hook_name: str | None = None
    """The hook point it reads, which need not belong to a pair."""
    hook_name_out: str | None = None
    """The hook point a transcoder writes to."""
    view: str | None = None
    """The view of a pair that it reads: that of `hook_name`, or the one its class was made for."""
    pair: PairMetadata | None = None
    """The two models."""
    tokens: TokenPolicy = EVERY_TOKEN
    """The tokens it was trained on, which are also read and edited by default."""
    seed: int | None = None
    k: int | float | None = None
    """Target number of active features per token, from the record or else the architecture."""
    l0: float | None = None
    """Features that fired per token: on held-out tokens, else at the end of training."""
    normalization: Mapping[str, Any] | None = None
    """What each model's activations were shifted and divided by in training."""
    frozen_decoder: bool = False
    """Whether the decoder was kept at its initial weights."""
    tokens_sha256: str | None = None
    """SHA-256 of the tokens it was trained on."""
    model_name: str | None = None
    """SAELens's name for the model that was read: the fine-tuned one."""
    prepend_bos: bool | None = None
    """Whether texts began with a beginning-of-sequence token."""
    context_size: int | None = None
    """Positions kept of each training sequence."""
    versions: Mapping[str, str] | None = None
    """Versions of the packages that trained it."""
    source_format: str | None = None
    """The format that `load_foreign` read it from; None for a dictionary of this package."""
    assumptions: tuple[str, ...] = ()
    """What `load_foreign` assumed because the file does not say."""

    @classmethod
    def of(cls, dictionary: SAE) -> "DictionaryRecord":
        """Read a dictionary's record.

        Args:
            dictionary: any SAELens dictionary.

        Raises:
            ValueError: a record that is damaged or contradicts itself.
            TypeError: a record with a value of the wrong type.
        """
        cfg = dictionary.cfg
        return cls.of_metadata(
            cfg.metadata.to_dict(),
            k=getattr(cfg, "k", None),
            view="concat" if isinstance(dictionary, TwoModels) else None,
        )

    @classmethod
    def of_metadata(
        cls,
        metadata: Mapping[str, Any],
        *,
        k: int | float | None = None,
        view: str | None = None,
    ) -> "DictionaryRecord":
        """Read a record from the `metadata` of a dictionary's config, as stored in `cfg.json`.

        Args:
            metadata: the metadata, by name.
            k: the architecture's k, used if the record has none.
            view: the view the dictionary's class was made for, used if the record does not name one.

        Raises:
            TypeError, ValueError: as for `of`.
        """
        stored = metadata.get("diffsae_lens") or {}
        if not isinstance(stored, Mapping):
            raise _damaged("`metadata.diffsae_lens` must be a mapping", stored)
        hook_name = metadata.get("hook_name")
        if hook_name is not None and not isinstance(hook_name, str):
            raise _damaged("`metadata.hook_name` must be a string", hook_name)
        pair = stored.get("pair")
        prepend_bos = metadata.get("prepend_bos")
        l0 = stored.get("l0_held_out")
        return cls(
            hook_name=hook_name,
            hook_name_out=metadata.get("hook_name_out"),
            view=_view(hook_name, stored.get("view"), view),
            pair=None if pair is None else PairMetadata.of_stored(pair),
            tokens=TokenPolicy(
                skip_positions=stored.get("skip_positions", 0),
                ignored_token_ids=tuple(stored.get("ignored_token_ids") or ()),
            ),
            seed=stored.get("seed"),
            k=stored.get("k") or k,
            l0=metadata.get("l0") if l0 is None else l0,
            normalization=stored.get("normalization"),
            frozen_decoder=bool(stored.get("frozen_decoder")),
            tokens_sha256=stored.get("tokens_sha256"),
            model_name=metadata.get("model_name"),
            prepend_bos=None if prepend_bos is None else bool(prepend_bos),
            context_size=metadata.get("context_size"),
            versions=stored.get("versions"),
            source_format=stored.get("source_format"),
            assumptions=tuple(stored.get("assumptions") or ()),
        )

    @property
    def hook(self) -> VirtualHook | None:
        """The virtual hook point it reads; None for a dictionary on a single model."""
        name = self.hook_name
        return VirtualHook.parse(name) if name and VirtualHook.is_virtual(name) else None

    @property
    def spec(self) -> View | None:
        """How its view is read and written."""
        return None if self.view is None else VIEWS[self.view]

    @property
    def is_crosscoder(self) -> bool:
        """Whether it reads both models side by side, whatever its class."""
        return self.spec is not None and self.spec.n_models == 2

    @property
    def scales(self) -> tuple[float, ...]:
        """What each model's activations were divided by in training; 1 where they were not."""
        n_models = 1 if self.spec is None else self.spec.n_models
        return tuple((self.normalization or {}).get("scale", (1.0,) * n_models))

    def write_to(self, cfg: SAEConfig) -> None:
        """Store the record in a dictionary's config, in place; other keys stay."""
        metadata = cfg.metadata
        for name in ("hook_name", "model_name", "prepend_bos", "context_size"):
            if getattr(self, name) is not None:
                setattr(metadata, name, getattr(self, name))
        stored: dict[str, Any] = {
            "pair": self.pair and asdict(self.pair),
            "view": self.view if self.hook is None else self.hook.view,
            "sign": "finetuned - base",
            "normalization": self.normalization,
            "frozen_decoder": self.frozen_decoder,
            "skip_positions": self.tokens.skip_positions,
            "ignored_token_ids": list(self.tokens.ignored_token_ids),
        }
        for name, value in (
            ("tokens_sha256", self.tokens_sha256),
            ("seed", self.seed),
            ("versions", self.versions),
            ("k", self.k),
            ("l0_held_out", self.l0),
            ("source_format", self.source_format),
            ("assumptions", list(self.assumptions) or None),
        ):
            if value is not None:
                stored[name] = value
        metadata.diffsae_lens = (metadata.diffsae_lens or {}) | stored


def _view(hook_name: str | None, stored: Any, of_class: str | None) -> str | None:
    """The view of the hook point, having checked that the record agrees if it names one too."""
    known = hook_name is not None and VirtualHook.is_virtual(hook_name)
    view = VirtualHook.parse(hook_name).view if known else stored or of_class  # type: ignore[arg-type]
    if stored not in (None, view) or view not in (None, *VIEWS):
        raise _damaged(
            f"`metadata.diffsae_lens` must hold the view of {hook_name!r} as `view`", stored
        )
    return view


def _damaged(expected: str, got: Any) -> ValueError:
    return InvalidValueError(
        f"the dictionary's record is damaged: {expected}, got {shown(got)}; get or train it again"
    )
