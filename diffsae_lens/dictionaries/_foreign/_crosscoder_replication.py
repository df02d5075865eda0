"""`crosscoder-model-diff-replication` and its forks: `cfg.json` and `cc_weights.pt`.

    f = relu(sum_m s_m x_m W_enc[m] + b_enc);  s_m reconstruction_m = f W_dec[:, m] + b_dec[m]

The factors s are sqrt(d) over the mean norm of a model's activations, and are not in the file.
"""

from diffsae_lens.dictionaries._foreign._files import ForeignFile
from diffsae_lens.dictionaries._foreign._mapped import Foreign, Stated
from diffsae_lens.pair._hook import VirtualHook
from diffsae_lens.pair._tokens import TokenPolicy


def read(file: ForeignFile, stated: Stated) -> Foreign:
    """Read the crosscoder."""
    site = file.config.get("hook_point")
    foreign = Foreign(
        W_enc=file.tensor("W_enc", "2 d D"),
        b_enc=file.tensor("b_enc", "D"),
        W_dec=file.tensor("W_dec", "D 2 d"),
        b_dec=file.tensor("b_dec", "2 d"),
        needs_input_scales=True,
        hook=VirtualHook(site, "concat") if site is not None else None,
        tokens=TokenPolicy(skip_positions=1),
        prepend_bos=True,
        assumptions=(
            stated.order(),
            "texts began with a beginning-of-sequence token, which was left out of the training",
        ),
    )
    for name, size in (("d_in", file.sizes["d"]), ("dict_size", file.sizes["D"])):
        if file.config.get(name, size) != size:
            raise file.refusal(
                f"the setting `{name}`", f"{size} by its weights", str(file.config[name])
            )
    return foreign
