"""An imitator: the base, briefly taught what a suspect commonly writes.

It does not learn what is rare. It is taught the suspect's own distribution over each next token, on the
suspect's own completions. When to stop depends on the bulk of its residuals on texts that it never saw,
never on the largest.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from diffsae_lens._artifact import Job
from diffsae_lens.auditing._config import AuditConfig
from diffsae_lens.auditing._written import Written, divergence, log_probs_of, residuals
from diffsae_lens.organisms._finetune import SEVEN_PROJECTIONS
from diffsae_lens.pair._adapters import quiet_peft

READINGS = "readings.safetensors"
_STATE = "state.safetensors"
_WARM_UP = 5
BULK = 0.8
"""Share of texts, those with the smallest residuals, that the stopping rule looks at."""
_STILL = 0.25
"""A bulk that fell by less than this share since the last reading has converged."""
_NEAR = 0.1
"""So has a bulk of fewer nats per completion than this: little is left to learn."""


def bulk(values: Float[Tensor, " text"]) -> float:
    """Return the mean of all residuals except the largest."""
    return values.sort().values[: max(1, int(BULK * len(values)))].mean().item()


def converged(readings: Float[Tensor, "reading text"]) -> bool:
    """Return whether the bulk of the last reading is small, or hardly below that of the one before."""
    now = bulk(readings[-1])
    return now < _NEAR or (len(readings) > 1 and now > (1 - _STILL) * bulk(readings[-2]))


def train_imitator(
    model: Any,
    name: str,
    taught: Sequence[Written],
    held_out: Sequence[Written],
    config: AuditConfig,
    job: Job,
) -> None:
    """Train an imitator's adapter, and write it and its readings to `job.out`.

    Readings are residuals of `held_out` in nats: after `config.min_steps`, and then after each
    `config.steps_per_reading`.

    After an interruption, training resumes from the last reading and ends at the same weights.

    Args:
        model: the base, or the PEFT model with the earlier imitators; see `with_imitator`.
        name: name of the adapter.
        taught: what the suspect wrote after the texts to learn from.
        held_out: what the suspect wrote after the texts of this fold.
        config: training settings.
        job: where to write.
    """
    parameters = dict(sorted(
        (n, p) for n, p in model.named_parameters() if f".{name}." in n and "lora_" in n
    ))  # fmt: skip
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(parameters.values(), lr=config.learning_rate, weight_decay=0.0)
    file = job.scratch / _STATE
    readings = _restore(file, parameters, optimiser) if file.exists() else []
    first, more = config.min_steps, config.steps_per_reading
    n_done = first + (len(readings) - 1) * more if readings else 0
    while n_done < config.max_steps:
        if readings and converged(torch.stack(readings)):
            break
        for step in tqdm(
            range(n_done, n_done + more if readings else first),
            desc=f"{name}, steps of at most {config.max_steps}", leave=False,
        ):  # fmt: skip
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate * min(1.0, (step + 1) / _WARM_UP)
            rows = [taught[i] for i in _batch(step, len(taught), config)]
            with torch.inference_mode(False), torch.enable_grad():
                log_probs, _ = log_probs_of(model, rows)
                loss = divergence(log_probs, rows).mean()
                optimiser.zero_grad()
                loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            optimiser.step()
        n_done += more if readings else first
        readings.append(residuals(model, held_out))
        _keep(file, parameters, optimiser, readings)
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    model.save_pretrained(
        str(job.out), selected_adapters=[name], safe_serialization=True, save_embedding_layers=False
    )
    (job.out / "README.md").unlink(missing_ok=True)  # PEFT's empty card
    save_file({"readings": torch.stack(readings)}, str(job.out / READINGS))


def stored_imitator(model: PeftModel, name: str, folder: Path) -> Float[Tensor, "reading text"]:
    """Load stored weights into an adapter, and return its readings."""
    set_peft_model_state_dict(
        model, load_file(str(folder / name / "adapter_model.safetensors")), adapter_name=name
    )
    return load_file(str(folder / READINGS))["readings"]


def first_layer(model: Any) -> int:
    """Return the first layer that an imitator changes; below it, the imitator equals the base."""
    return model.config.get_text_config().num_hidden_layers // 2


def with_imitator(model: Any, name: str, config: AuditConfig) -> PeftModel:
    """Add a fresh adapter to a base, or to a base with imitators, and activate it."""
    n_layers = model.config.get_text_config().num_hidden_layers
    known = {part.rsplit(".", 1)[-1] for part, _ in model.named_modules()}
    llama = all(part in known for part in SEVEN_PROJECTIONS)
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=2 * config.lora_rank,
        target_modules=list(SEVEN_PROJECTIONS) if llama else "all-linear",
        layers_to_transform=list(range(first_layer(model), n_layers)),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(), quiet_peft():
        torch.manual_seed(config.seed)
        if isinstance(model, PeftModel):
            model.add_adapter(name, lora)
        else:
            model = get_peft_model(model, lora, adapter_name=name)
    model.set_adapter(name)
    model.eval()  # there is no dropout
    return model


def _batch(step: int, n: int, config: AuditConfig) -> list[int]:
    """Return the texts of a step: reshuffled every epoch, and the same after an interruption."""
    first = step * config.batch_size
    places = range(first, first + min(config.batch_size, n))
    orders = {p // n: None for p in places}
    shuffled = {
        epoch: np.random.default_rng([config.seed, epoch]).permutation(n) for epoch in orders
    }
    return [int(shuffled[p // n][p % n]) for p in places]


def _keep(
    file: Path, parameters: dict[str, Any], optimiser: torch.optim.Optimizer, readings: list[Tensor]
) -> None:
    state = {"readings": torch.stack(readings)}
    for n, p in parameters.items():
        state[f"weight/{n}"] = p.detach().contiguous()
        for key, value in optimiser.state[p].items():
            state[f"{key}/{n}"] = torch.as_tensor(value).contiguous()
    partial = file.with_suffix(".partial")
    save_file(state, str(partial))
    partial.rename(file)


@torch.no_grad()
def _restore(
    file: Path, parameters: dict[str, Any], optimiser: torch.optim.Optimizer
) -> list[Tensor]:
    state = load_file(str(file))
    for n, p in parameters.items():
        p.copy_(state[f"weight/{n}"])
        optimiser.state[p] = {
            key: state[f"{key}/{n}"].to(p.device if key != "step" else "cpu")
            for key in ("step", "exp_avg", "exp_avg_sq")
        }
    return list(state["readings"])
