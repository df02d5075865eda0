"""`crosscode`: `model.pt` and `model_cfg.yaml` of a crosscoder over models and hook points.

    f = a(sum_m x_m W_enc[m] + b_enc);  reconstruction_m = f W_dec[:, m] + b_dec[m]

a is the ReLU, a JumpReLU or a TopK. Scaling factors are folded into the weights or missing from the file.
"""

from dataclasses import replace

from torch import Tensor

from diffsae_lens._errors import InvalidValueError
from diffsae_lens.dictionaries._foreign._files import ForeignFile
from diffsae_lens.dictionaries._foreign._mapped import Foreign, Stated

_JUMPRELU = ("AnthropicSTEJumpReLUActivation", "JumpReLUActivationFunction")


def read(file: ForeignFile, stated: Stated) -> Foreign:
    """Read a crosscoder of two models at one hook point."""
    points = _hook_points(file)
    W_enc = file.tensor("_W_enc_XiDiL", f"2 {points} d D")
    W_dec = file.tensor("_W_dec_LXoDo", f"D 2 {points} d")
    b_enc = _bias(file, "use_encoder_bias", ("b_enc_L",), "D")
    b_dec = _bias(file, "use_decoder_bias", ("_b_dec_XoDo", "b_dec_XoDo"), f"2 {points} d")
    is_folded = bool(file.tensor("is_folded", ""))
    file.ignore("folded_scaling_factors_in_Xi", "folded_scaling_factors_out_Xo")
    scale = None
    if is_folded:
        scale = file.tensor("folded_scaling_factors_out_Xo", f"2 {points}").reciprocal().flatten()
    foreign = Foreign(
        W_enc=W_enc.flatten(0, -3),
        b_enc=W_enc.new_zeros(file.sizes["D"]) if b_enc is None else b_enc,
        W_dec=W_dec.flatten(1, -2),
        b_dec=W_enc.new_zeros(2, file.sizes["d"]) if b_dec is None else b_dec.flatten(0, -2),
        scale=None if scale is None else tuple(scale.tolist()),
        needs_input_scales=not is_folded,
        assumptions=(stated.order(),),
    )
    return _with_activation(file, stated, foreign)


def _hook_points(file: ForeignFile) -> str:
    """The hook-point dimension of shapes; empty for older files, which lack it."""
    tensor = file.tensors["_W_enc_XiDiL"]
    if tensor.ndim == 4 and tensor.shape[1] != 1:
        raise InvalidValueError(
            f"{file.path}: `_W_enc_XiDiL` must be of one hook point, got {tensor.shape[1]} (shape "
            f"{list(tensor.shape)}); features that read several layers at once have no hook of a pair"
        )
    return "1" if tensor.ndim == 4 else ""


def _bias(file: ForeignFile, setting: str, names: tuple[str, ...], shape: str) -> Tensor | None:
    if not file.setting(setting, (True, False)):
        return None
    there = [name for name in names if file.has(name)]
    return file.tensor(there[0] if there else names[0], shape)


def _with_activation(file: ForeignFile, stated: Stated, foreign: Foreign) -> Foreign:
    activation = file.setting("activation_fn")
    name = activation.get("classname") if isinstance(activation, dict) else activation
    settings = activation.get("cfg") or {} if isinstance(activation, dict) else {}
    if name == "ReLUActivation":
        return foreign
    if name in _JUMPRELU:
        logs = ("_activation_fn.log_threshold_L", "activation_fn.log_threshold_L")
        log = next((key for key in logs if file.has(key)), logs[0])
        return replace(foreign, threshold=file.tensor(log, "D").exp())
    if name == "TopkActivation":
        return replace(foreign, k=settings["k"], mean_k=settings["k"]).assuming(
            "where fewer than k pre-activations are above 0 the format's TopK keeps some below 0; they "
            "are 0 here"
        )
    if name == "BatchTopkActivation":
        return replace(
            foreign,
            threshold=stated.batch_threshold(str(file.path), settings.get("k_per_example")),
            mean_k=settings.get("k_per_example"),
        ).assuming(
            "codes are gated by the threshold stated, where training ranked those of a batch"
        )
    raise InvalidValueError(
        f"{file.path}: the activation function must be a ReLU, JumpReLU, TopK or BatchTopK, got {name!r}, "
        "which no SAELens dictionary has"
    )
