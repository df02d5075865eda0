"""What edits do to texts that they should leave alone."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import kl_div, nll_loss

from diffsae_lens._errors import InvalidTypeError, InvalidValueError
from diffsae_lens._typed import Count, typed
from diffsae_lens.interventions._edit import Edit, check_edits, running
from diffsae_lens.pair._chat import Text
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.results import SideEffectRow, Table


@torch.no_grad()
@typed
def side_effects(
    pair: HookedModelPair,
    edits: Mapping[str, Edit | None],
    texts: Mapping[str, Sequence[Text]],
    *,
    batch_size: Count = 4,
) -> Table[SideEffectRow]:
    """Measure what edits do to texts they should leave alone.

    Args:
        pair: the two models.
        edits: edits by name.
        texts: texts by kind, such as benign prompts with their wanted completions, or `ordinary_texts()`.
        batch_size: texts per forward pass; memory holds about five times the logits of one pass.

    Returns:
        One row per edit and kind of texts. `dictionary` and `control_of` are left for the caller to fill in.

    Raises:
        TypeError: `edits` that are not edits by name, or `texts` that are not lists of texts by kind.
        ValueError: no edits, an edit of another pair, a kind without texts, a text beyond the context, or
            a `batch_size` below 1.
    """
    check_edits("edits", edits, pair)
    if not isinstance(texts, Mapping):
        raise InvalidTypeError(
            f"`texts` must map kinds to lists of texts, got {type(texts).__name__}; name the kind"
        )
    if not edits or not texts:
        raise InvalidValueError("need `edits`, and `texts` with at least one of each kind")
    tokenised = {
        kind: pair.tokenise(members, name=f"texts[{kind!r}]") for kind, members in texts.items()
    }
    sums: dict[tuple[str, str], Tensor] = {}
    for kind, members in tokenised.items():
        for _, chunk in members.batches(batch_size, f"side effects on {kind}"):
            tokens = chunk.tokens.to(pair.device)
            counted = chunk.attended[:, 1:].to(pair.device)
            plain = pair(tokens)[:, :-1][counted].float().log_softmax(-1)
            targets = tokens[:, 1:][counted]
            for name, edit in edits.items():
                with running(pair, edit) as acting:
                    changed = acting(tokens)[:, :-1][counted].float().log_softmax(-1)
                found = torch.stack(
                    [
                        kl_div(changed, plain, reduction="sum", log_target=True),
                        nll_loss(changed, targets, reduction="sum"),
                        nll_loss(plain, targets, reduction="sum"),
                        torch.tensor(float(len(targets)), device=targets.device),
                    ]
                )
                sums[name, kind] = sums.get((name, kind), 0) + found.double().cpu()
    rows = []
    for (name, kind), total in sums.items():
        kl, after, before = (total[:3] / total[3]).tolist()
        edit = edits[name]
        row = SideEffectRow(
            name=name,
            kind="unmodified" if edit is None else edit.kind,
            n_features=0 if edit is None else edit.n_features,
            texts=kind,
            n_tokens=int(total[3]),
            kl=kl,
            cross_entropy=after,
            cross_entropy_unmodified=before,
        )
        rows.append(row)
    return Table(tuple(rows))
