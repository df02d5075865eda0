"""Llamascopium (`Language-Model-SAEs`): `config.json` and `sae_weights.safetensors` of a crosscoder.

    u = sum_h (s_h x_h W_E[h] + b_E[h]);  f_h = a(u n_h) / n_h, n_h the norm of feature rows W_D[h]
    s_h reconstruction_h = f_h W_D[h] + b_D[h];  s_h = sqrt(d) / mean norm from the file, or 1

The codes loaded are f, as `encode` returns them: one per feature with the ReLU, one per feature and model
with a threshold, since the norms differ.
"""

import torch

from diffsae_lens._errors import InvalidValueError
from diffsae_lens.dictionaries._foreign._files import ForeignFile
from diffsae_lens.dictionaries._foreign._mapped import Foreign, Stated
from diffsae_lens.pair._hook import layer_of

_NORM = "dataset_average_activation_norm."


def read(file: ForeignFile, stated: Stated) -> Foreign:
    """Read a crosscoder of two models at one hook point."""
    file.setting("sae_type", ("crosscoder",))
    file.setting("norm_activation", ("dataset-wise", "inference"))
    heads = _heads(file)
    foreign = Foreign(
        W_enc=file.tensor("W_E", "2 d D"),
        b_enc=file.tensor("b_E", "2 D").sum(0),
        W_dec=file.tensor("W_D", "2 D d").transpose(0, 1),
        b_dec=file.tensor("b_D", "2 d"),
        assumptions=(
            stated.order(),
            f"of the heads {heads}, the first is the base model and the second the fine-tuned one",
        ),
    )
    file.ignore(*(name for name in file.tensors if name.startswith(_NORM)))
    if file.config["norm_activation"] == "dataset-wise":
        norms = [float(file.tensor(_NORM + head, "")) for head in heads]
        foreign = foreign.with_input_scales(tuple(file.sizes["d"] ** 0.5 / norm for norm in norms))
    name = file.setting("act_fn")
    if name == "relu":
        return foreign
    if name == "jumprelu":
        threshold = file.tensor("activation_function.log_jumprelu_threshold", "D").exp()
    elif name == "batchtopk":
        threshold = torch.tensor(stated.batch_threshold(str(file.path), file.config.get("top_k")))
        foreign = foreign.assuming(
            "codes times decoder norm are gated by the threshold stated, where training ranked those of "
            "a batch"
        )
    else:
        raise InvalidValueError(
            f"{file.path}: `act_fn` must be relu, jumprelu or batchtopk, got {name!r}, which keeps k "
            "features for each model by itself, as no SAELens dictionary does"
        )
    norms_by_head = foreign.W_dec.norm(dim=-1).T
    never = torch.finfo(torch.float32).max
    return foreign.split(torch.where(norms_by_head > 0, threshold / norms_by_head, never))


def _heads(file: ForeignFile) -> list[str]:
    """The names of the two heads, the base model's first."""
    heads = file.setting("hook_points")
    layers = {layer_of(head) for head in heads}
    if len(heads) != 2 or (None not in layers and len(layers) > 1):
        raise file.refusal(
            "`hook_points`", "one hook point of two models", f"{heads}, layers of one"
        )
    return heads[::-1] if file.finetuned_first else list(heads)
