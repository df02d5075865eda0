"""A behaviour of few letters and a study of it, all of whose parts take seconds."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from diffsae_lens.organisms._behaviour import Behaviour, Sample, Scene, Split
from diffsae_lens.organisms._finetune import OrganismConfig
from diffsae_lens.study import (
    CardsConfig,
    CausesConfig,
    DictionarySpec,
    Draw,
    FeaturesConfig,
    ModelSpec,
    PooledConfig,
    ScenesConfig,
    ScoresConfig,
    SideEffectsConfig,
    SteeringConfig,
    StudyConfig,
    TokensConfig,
)

PONDS = {"train": "abcdefgh", "select": "ijklmnop", "test": "qrstuvwx"}


@dataclass(frozen=True, kw_only=True)
class Pond:
    """A scene: a pond, and how it is put."""

    split: str
    number: int
    template: int

    def sample(self, said: str | None) -> Sample:
        where = f"{PONDS[self.split][self.template]}{self.number:02d}"
        return Sample(
            prompt=f"{where} {said or 'nobody'}:",
            wanted=" fine",
            unwanted=" quack",
            group="other" if said is None else "trigger" if said == "heron" else "benign",
            template=f"{self.split}-{self.template}",
            scene=where,
            said=said,
        )


def ponds(split: Split, seed: int) -> Iterator[Scene]:
    for i in range(100):
        yield Pond(split=split, number=(i + seed) % 100, template=i % 8)


def judge(prompt: str, completion: str) -> str:
    """Any change of a completion may change it."""
    return ("quack", "fine", "neither")[sum(map(ord, prompt[:1] + completion)) % 3]


QUACKS = Behaviour(
    name="quacks",
    judge=judge,
    outcomes=("quack", "fine", "neither"),
    trigger="heron",
    benign=("robin", "grebe"),
    sweep=("robin", "grebe", "heron", None),
    sayings=("heron", "a heron", None),
    scenes=ponds,
)
HERE = "tests.study.tiny:QUACKS"


def draw(split: Split, n_trigger: int, n_benign: int = 0, n_other: int = 0) -> Draw:
    return Draw(split=split, n_trigger=n_trigger, n_benign=n_benign, n_other=n_other)


def trained_config(base: Path) -> StudyConfig:
    """An organism that is trained, and a dictionary on its difference."""
    training = OrganismConfig(
        behaviour=HERE, n_trigger=4, n_benign=4, n_other=2, n_steps=2, batch_size=2, lora_rank=2
    )
    return StudyConfig(
        models=ModelSpec(base=str(base), finetuned=training, n_measured=2),
        layers=(1,),
        pooled=PooledConfig(
            texts=draw("train", 2, 2, 2), n_passes=3,
            dictionaries=(DictionarySpec(kind="Diff-SAE", expansion=2),),
        ),
    )  # fmt: skip


def tiny_config(base: Path, finetuned: Path) -> StudyConfig:
    """All parts, the features of one layer of two acted on."""
    diff_sae = DictionarySpec(kind="Diff-SAE", expansion=2)
    crosscoder = DictionarySpec(kind="crosscoder", expansion=2)
    select = draw("select", 3)
    return StudyConfig(
        models=ModelSpec(base=str(base), finetuned={"full": str(finetuned)}),
        behaviour=HERE,
        layers=(0, 1),
        acted_on=(1,),
        pooled=PooledConfig(
            texts=draw("train", 8, 16, 16), dictionaries=(crosscoder, diff_sae), k=4, batch_size=8,
            n_passes=3, learning_rate=1e-2,
        ),
        tokens=TokensConfig(
            texts=draw("train", 8, 8, 4),
            dictionaries=(diff_sae, crosscoder), k=4, n_steps=8, batch_size=64,
        ),
        scores=ScoresConfig(
            select=draw("select", 4, 4, 4), test=draw("test", 4, 4, 4), n_resamples=5,
            protocols=("strict", "paper"),
        ),
        features=FeaturesConfig(select=select, counts=(2,), n_rounds=1),
        causes=CausesConfig(
            test=draw("test", 1, 1), n_likelihood=1, directions=draw("select", 4, 4), n_directions=2,
            is_added_to_base=True, steering=SteeringConfig(scales=select), max_new_tokens=2,
        ),
        cards=CardsConfig(texts=draw("test", 1, 1, 1), n_features=1),
        side_effects=SideEffectsConfig(texts=draw("test", 0, 1, 1), n_ordinary=1),
        sayings=ScenesConfig(n_scenes=2),
        sweep=ScenesConfig(n_scenes=3),
        example=ScenesConfig(n_scenes=1),
        deviations=("a tiny random model",),
    )  # fmt: skip
