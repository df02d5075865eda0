"""Toy files of other libraries' formats, and what each format computes, written out in NumPy.

Every maker writes a file into a folder and returns its forward pass: `[row, model, d]` activations (or
`[row, d]`) to codes and reconstructions, derived from the format's definition and not from our loader.
"""

import json

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

from tests.conftest import D_MODEL

D_SAE = 12
IDS = {"CROSSCODER": 1, "SAE": 2, "MIXED": 3, "NONE": 4, "DECOUPLED": 5}
NORMALISERS = ("none", "nan", "global", "by neuron")
ALPHAS = (0.7, 0.2)


def drawn(seed, *shape, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def as_tensors(arrays):
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def relu(x):
    return np.maximum(x, 0)


def write(folder, arrays, config, *, weights, settings="config.json"):
    folder.mkdir(parents=True, exist_ok=True)
    tensors = as_tensors(arrays)
    if weights.endswith(".safetensors"):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / weights)
    else:
        torch.save(tensors, folder / weights)
    if config is not None:
        dump = yaml.dump if settings.endswith(".yaml") else json.dumps
        (folder / settings).write_text(dump(config))
    return folder


def normaliser(kind, *models):
    """Its buffers, and its two functions."""
    mean, std = drawn(10, *models, D_MODEL, scale=0.5), np.abs(drawn(11, *models, D_MODEL)) + 0.5
    if kind == "none":
        return {}, lambda x: x, lambda x: x
    if kind == "nan":
        nan = np.full_like(mean, np.nan)
        buffers = {"activation_mean": nan, "activation_std": nan}
        ones = np.ones(models, np.float32)
        return buffers | {"activation_global_scale": ones, "target_rms": np.float32(1)}, None, None
    rms = np.float32(3.0)
    scale = rms / np.sqrt((std**2).sum(-1) + 1e-8)
    buffers = {"activation_mean": mean, "activation_std": std, "target_rms": rms}
    if kind == "by neuron":
        stored = np.ones(models, np.float32)
        forth, back = (
            lambda x: (x - mean) / (std + 1e-8),
            lambda x: x * (std + 1e-8) + mean,
        )
    else:
        stored = scale.astype(np.float32)
        forth, back = (
            lambda x: (x - mean) * stored[..., None],
            lambda x: x / (stored[..., None] + 1e-8) + mean,
        )
    return buffers | {"activation_global_scale": stored}, forth, back


def dictionary_learning_crosscoder(
    folder, *, norm="CROSSCODER", normalised="none", batch_topk=True, threshold=0.8,
    weights="model.safetensors", prefix="", config="hub", with_id=True,
):  # fmt: skip
    W_enc, b_enc = drawn(0, 2, D_MODEL, D_SAE, scale=0.5), drawn(1, D_SAE, scale=0.3)
    W_dec, b_dec = drawn(2, 2, D_SAE, D_MODEL, scale=0.3), drawn(3, 2, D_MODEL)
    W_dec[0, 0] = W_dec[:, 1] = 0  # a feature of one model, and one of none
    buffers, forth, back = normaliser(normalised, 2)
    forth, back = forth or (lambda x: x), back or (lambda x: x)
    arrays = {
        "encoder.weight": W_enc, "encoder.bias": b_enc, "decoder.weight": W_dec, "decoder.bias": b_dec,
    } | buffers  # fmt: skip
    if with_id:
        arrays["code_normalization_id"] = np.int64(IDS[norm])
    decoupled = norm == "DECOUPLED"
    by_model = np.array([threshold, 1.5 * threshold], np.float32)
    if batch_topk:
        arrays |= {"k": np.int32(4), "threshold": by_model if decoupled else np.float32(threshold)}
    settings = {"code_normalization": norm, "dict_size": D_SAE, "k": 4} | dict(
        zip(("code_normalization_alpha_sae", "code_normalization_alpha_cc"), ALPHAS, strict=True)
    )
    settings = {
        "hub": settings,
        "trainer": {"trainer": settings | {"code_normalization": norm.lower()}},
        None: None,
    }[config]
    write(folder, {prefix + k: v for k, v in arrays.items()}, settings, weights=weights)
    norms = np.sqrt((W_dec.astype(np.float64) ** 2).sum(-1))  # [model, feature]
    joint = np.sqrt((norms**2).sum(0))
    factor = {
        "CROSSCODER": norms.sum(0), "SAE": joint, "NONE": np.ones(D_SAE), "DECOUPLED": norms.sum(0),
        "MIXED": ALPHAS[0] * joint + ALPHAS[1] * norms.sum(0),
    }[norm]  # fmt: skip

    def forward(x):
        if decoupled and batch_topk:
            z = forth(forth(x))  # its encoder normalises again
            u = relu(np.einsum("bld,ldf->bf", z, W_enc) + b_enc)
            f = u[:, None] * (u[:, None] * norms > by_model[:, None])
            codes = (f * norms).reshape(len(x), -1)
            return codes, back(np.einsum("blf,lfd->bld", f, W_dec) + b_dec)
        u = relu(np.einsum("bld,ldf->bf", forth(x), W_enc) + b_enc)
        f = u * (u * factor > threshold) if batch_topk else u
        return f * factor, back(np.einsum("bf,lfd->bld", f, W_dec) + b_dec)

    return forward


def dictionary_learning_sae(folder, *, normalised="none", threshold=0.8):
    W_enc, b_enc = drawn(0, D_SAE, D_MODEL, scale=0.5), drawn(1, D_SAE, scale=0.3)
    W_dec, b_dec = drawn(2, D_MODEL, D_SAE, scale=0.3), drawn(3, D_MODEL, scale=0.5)
    buffers, forth, back = normaliser(normalised)
    forth, back = forth or (lambda x: x), back or (lambda x: x)
    arrays = {
        "encoder.weight": W_enc, "encoder.bias": b_enc, "decoder.weight": W_dec, "b_dec": b_dec,
        "k": np.int32(4), "threshold": np.float32(threshold),
    } | buffers  # fmt: skip
    write(folder, arrays, None, weights="model_final.pt")

    def forward(x):
        u = relu((forth(x) - b_dec) @ W_enc.T + b_enc)
        f = u * (u > threshold)
        return f, back(f @ W_dec.T + b_dec)

    return forward


def replication(folder, scales, *, config=None):
    W_enc, b_enc = drawn(0, 2, D_MODEL, D_SAE, scale=0.5), drawn(1, D_SAE, scale=0.3)
    W_dec, b_dec = drawn(2, D_SAE, 2, D_MODEL, scale=0.3), drawn(3, 2, D_MODEL)
    arrays = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    settings = {"d_in": D_MODEL, "dict_size": D_SAE} | (config or {})
    write(folder, arrays, settings, weights="cc_weights.pt", settings="cfg.json")
    factors = np.array(scales)[:, None]

    def forward(x):
        f = relu(np.einsum("bmd,mdf->bf", x * factors, W_enc) + b_enc)
        return f, (np.einsum("bf,fmd->bmd", f, W_dec) + b_dec) / factors

    return forward


def crosscode(folder, *, activation="relu", scales=None, biases=True, n_points=1):
    W_enc, b_enc = drawn(0, 2, n_points, D_MODEL, D_SAE, scale=0.5), drawn(1, D_SAE, scale=0.3)
    W_dec, b_dec = drawn(2, D_SAE, 2, n_points, D_MODEL, scale=0.3), drawn(3, 2, n_points, D_MODEL)
    b_enc += 2 * (activation == "topk")  # so that k of them are above 0 in every row
    logs = drawn(4, D_SAE, scale=0.3)
    names = {
        "relu": ("ReLUActivation", {}),
        "jumprelu": ("AnthropicSTEJumpReLUActivation", {"size": D_SAE, "bandwidth": 0.1}),
        "topk": ("TopkActivation", {"k": 3}),
        "batchtopk": ("BatchTopkActivation", {"k_per_example": 3}),
        "groupmax": ("GroupMaxActivation", {"k_groups": 3, "latents_size": D_SAE}),
    }
    arrays = {
        "_W_enc_XiDiL": W_enc, "_W_dec_LXoDo": W_dec, "is_folded": np.bool_(scales is None),
        "folded_scaling_factors_in_Xi": np.full((2, n_points), 2, np.float32),
        "folded_scaling_factors_out_Xo": np.full((2, n_points), 2, np.float32),
    } | ({"b_enc_L": b_enc, "_b_dec_XoDo": b_dec} if biases else {})  # fmt: skip
    if activation == "jumprelu":
        arrays["_activation_fn.log_threshold_L"] = logs
    name, cfg = names[activation]
    config = {
        "n_models": 2, "n_hookpoints": n_points, "d_model": D_MODEL, "n_latents": D_SAE, "dtype": "float32",
        "activation_fn": {"classname": name, "cfg": cfg},
        "use_encoder_bias": biases, "use_decoder_bias": biases,
    }  # fmt: skip
    write(folder, arrays, config, weights="model.pt", settings="model_cfg.yaml")
    factors = np.array(scales or (1.0, 1.0))[:, None]
    b_enc, b_dec = (b_enc, b_dec[:, 0]) if biases else (0.0, 0.0)

    def forward(x):
        u = np.einsum("bmd,mdf->bf", x * factors, W_enc[:, 0]) + b_enc
        if activation == "relu":
            f = relu(u)
        elif activation == "jumprelu":
            f = u * (u > np.exp(logs))
        elif activation == "batchtopk":
            f = u * (u > 0.9)
        else:
            f = u * (u >= np.sort(u, axis=1)[:, -3:-2])
        return f, (np.einsum("bf,fmd->bmd", f, W_dec[:, :, 0]) + b_dec) / factors

    return forward


def llamascopium(folder, *, act_fn="relu", norm="inference", heads=("base", "chat")):
    W_enc, b_enc = drawn(0, 2, D_MODEL, D_SAE, scale=0.5), drawn(1, 2, D_SAE, scale=0.3)
    W_dec, b_dec = drawn(2, 2, D_SAE, D_MODEL, scale=0.3), drawn(3, 2, D_MODEL)
    logs, means = drawn(4, D_SAE, scale=0.3), np.array([5.0, 8.0], np.float32)
    arrays = {"W_E": W_enc, "b_E": b_enc, "W_D": W_dec, "b_D": b_dec}
    arrays |= {f"dataset_average_activation_norm.{h}": m for h, m in zip(heads, means, strict=True)}
    if act_fn == "jumprelu":
        arrays["activation_function.log_jumprelu_threshold"] = logs
    config = {
        "sae_type": "crosscoder", "hook_points": list(heads), "d_model": D_MODEL, "act_fn": act_fn,
        "norm_activation": norm, "top_k": 3,
    }  # fmt: skip
    write(folder, arrays, config, weights="sae_weights.safetensors")
    factors = (D_MODEL**0.5 / means if norm == "dataset-wise" else np.ones(2))[:, None]
    threshold = np.exp(logs) if act_fn == "jumprelu" else 0.5
    norms = np.sqrt((W_dec.astype(np.float64) ** 2).sum(-1))

    def forward(x):
        u = np.einsum("bhd,hdf->bf", x * factors, W_enc) + b_enc.sum(0)
        if act_fn == "relu":
            f = np.stack([relu(u)] * 2, axis=1)
        else:
            f = u[:, None] * (u[:, None] * norms > threshold)
        codes = f[:, 0] if act_fn == "relu" else f.reshape(len(x), -1)
        return codes, (np.einsum("bhf,hfd->bhd", f, W_dec) + b_dec) / factors

    return forward
