"""The science-of-finetuning forks of `dictionary_learning`: crosscoders, and BatchTopK SAEs.

    z = normalised activations, u = relu(sum_l z_l W_enc[l] + b_enc), n = code normalisation of the decoder
    BatchTopK: f = u where u n > threshold;  reconstruction_l = f W_dec[l] + b_dec[l], denormalised

The codes loaded are f n, as `get_activations` returns them. A decoupled BatchTopK has a norm and a
threshold per model, and so two codes per feature.
"""

from dataclasses import replace

import torch
from torch import Tensor

from diffsae_lens.dictionaries._foreign._files import ForeignFile
from diffsae_lens.dictionaries._foreign._mapped import Affine, Foreign, Stated

_IDS = {1: "CROSSCODER", 2: "SAE", 3: "MIXED", 4: "NONE", 5: "DECOUPLED"}
_ALPHAS = {"code_normalization_alpha_sae": 1.0, "code_normalization_alpha_cc": 0.1}
_NORMALISER = ("activation_mean", "activation_std", "activation_global_scale")
_EPSILON = 1e-8
_ROUNDING = 0.02
"""Relative error allowed between a scale computed in bfloat16 and the formula."""


def read(file: ForeignFile, stated: Stated) -> Foreign:
    """Read a CrossCoder, a BatchTopKCrossCoder or a BatchTopKSAE."""
    file.ignore("target_rms")  # already part of the global scale
    if file.tensors["encoder.weight"].ndim == 2:
        foreign = Foreign(
            W_enc=file.tensor("encoder.weight", "D d").T[None],
            b_enc=file.tensor("encoder.bias", "D"),
            W_dec=file.tensor("decoder.weight", "d D").T[:, None],
            b_dec=file.tensor("b_dec", "d")[None],
        )
        foreign = replace(
            foreign, b_enc=foreign.b_enc - torch.einsum("md,mdf->f", foreign.b_dec, foreign.W_enc)
        )
        return _with_threshold(file, stated, _normalised(file, foreign), "")
    foreign = Foreign(
        W_enc=file.tensor("encoder.weight", "2 d D"),
        b_enc=file.tensor("encoder.bias", "D"),
        W_dec=file.tensor("decoder.weight", "2 D d").transpose(0, 1),
        b_dec=file.tensor("decoder.bias", "2 d"),
        assumptions=(stated.order(),),
    )
    is_batch_topk = file.has("threshold") or file.has("k")
    norms = foreign.W_dec.norm(dim=-1)
    kind, notes = _code_normalisation(file)
    foreign = foreign.assuming(*notes)
    if is_batch_topk and kind == "DECOUPLED":
        # Its encoder normalises activations that are already normalised, in training and afterwards.
        foreign = _normalised(file, foreign, n_times=2).split(0.0)
        foreign = foreign.with_codes_times(norms.T.flatten())
        return _with_threshold(file, stated, foreign, "2")
    foreign = _normalised(file, foreign)
    if kind != "NONE":
        foreign = foreign.with_codes_times(_code_norm(file, kind, norms))
    return _with_threshold(file, stated, foreign, "") if is_batch_topk else foreign


def _settings(file: ForeignFile) -> dict[str, object]:
    """The dictionary's settings, which a training run stores under `trainer`."""
    trainer = file.config.get("trainer")
    return trainer if isinstance(trainer, dict) else file.config


def _code_normalisation(file: ForeignFile) -> tuple[str, list[str]]:
    """The name of the code normalisation, and what was assumed."""
    written = _settings(file).get("code_normalization")
    written = written.upper() if isinstance(written, str) else written
    if not file.has("code_normalization_id"):
        if written is None:
            return "CROSSCODER", [
                "the code normalisation is CROSSCODER, as in files that do not say"
            ]
        if written not in _IDS.values():
            raise file.refusal("`code_normalization`", f"one of {[*_IDS.values()]}", repr(written))
        return str(written), []
    found = _IDS.get(int(file.tensor("code_normalization_id", "")))
    if found is None or written not in (None, found):
        got = f"{file.tensors['code_normalization_id'].item()} (its settings say {written!r})"
        raise file.refusal("`code_normalization_id`", f"one of {_IDS} and what they say", got)
    notes = []
    if found == "MIXED" and not set(_ALPHAS) <= set(_settings(file)):
        notes = [f"the weights of MIXED are the defaults {_ALPHAS}, which the file does not hold"]
    return found, notes


def _code_norm(file: ForeignFile, kind: str, norms: Tensor) -> Tensor:
    """The factors that multiply codes before they are compared and reported, `[feature]`."""
    joint, added = norms.square().sum(-1).sqrt(), norms.sum(-1)
    if kind == "MIXED":
        settings = _ALPHAS | {k: v for k, v in _settings(file).items() if k in _ALPHAS}
        of_joint, of_added = (float(str(settings[name])) for name in _ALPHAS)
        return of_joint * joint + of_added * added
    return joint if kind == "SAE" else added


def _with_threshold(file: ForeignFile, stated: Stated, foreign: Foreign, shape: str) -> Foreign:
    """The dictionary with the file's threshold on the codes, or the one given instead."""
    given = stated.take("threshold")
    threshold = file.tensor("threshold", shape)
    notes = []
    if given is not None:
        notes = [f"the threshold is {given:g}, as stated, in place of the file's"]
        threshold = torch.full_like(threshold, given)
    elif (threshold < 0).any():
        notes = ["the threshold is below 0, as before training sets it, so the codes are dense"]
    n, mean_k = len(foreign.b_enc), int(file.tensor("k", "")) * threshold.numel()
    by_feature = threshold.clamp(min=0).reshape(-1, 1).expand(-1, n // threshold.numel())
    return replace(foreign, threshold=by_feature.flatten(), mean_k=mean_k).assuming(*notes)


def _normalised(file: ForeignFile, foreign: Foreign, *, n_times: int = 1) -> Foreign:
    """The dictionary with the file's normaliser, if it has one, applied before its encoder."""
    if not any(file.has(name) for name in _NORMALISER):
        return foreign
    models = "2" if foreign.n_models == 2 else ""
    mean, std = (file.tensor(name, f"{models} d", may_be_nan=True) for name in _NORMALISER[:2])
    stored = file.tensor(_NORMALISER[2], models, may_be_nan=True)
    if mean.isnan().any() or std.isnan().any():
        return foreign
    mean, std, stored = mean.view_as(foreign.b_dec), std.view_as(foreign.b_dec), stored.view(-1, 1)
    rms = file.tensor("target_rms", "") if file.has("target_rms") else torch.tensor(1.0)
    expected = rms / (std.square().sum(-1, keepdim=True) + _EPSILON).sqrt()
    scale: tuple[float, ...] | None = None
    if bool((stored == 1).all()) and not torch.allclose(stored, expected, rtol=_ROUNDING):
        into = out = (std + _EPSILON).reciprocal()
        note = (
            "every neuron is divided by its own standard deviation (`keep_relative_variance=False`, "
            "which the file does not say): its global scale is 1 and not what the variances make it; "
            "decoder norms are compared in raw activations"
        )
    else:
        into, out = stored.expand_as(std), (stored + _EPSILON).expand_as(std)
        scale = tuple((1 / stored.flatten()).tolist())
        note = "activations are scaled by one number for each model (`keep_relative_variance=True`)"
        if not torch.allclose(stored, expected, rtol=_ROUNDING):
            note += "; it is not what the variances make it, and is taken as it stands"
    back = Affine(shift=mean, scale=out)
    notes = [note]
    if n_times == 2:  # ((x - mean) s - mean) s
        mean, into = mean + mean / into, into.square()
        notes.append(
            "the encoder's input is normalised twice, as this format's decoupled code does"
        )
    return replace(foreign, into=Affine(shift=mean, scale=into), out=back, scale=scale).assuming(
        *notes
    )
