"""What edits do to texts that they should leave alone."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import kl_div, nll_loss

from diffsae_lens._errors import InvalidTypeError, InvalidValueError
from diffsae_lens._typed import Count, typed
from diffsae_lens.interventions._edit import Edit, check_edits, groups_of, side_by_side
from diffsae_lens.pair._chat import Text
from diffsae_lens.pair._hooked import HookedModelPair
from diffsae_lens.results import SideEffectRow, Table

UNMODIFIED = 0
"""The number of no edit; edits are numbered from 1, since any text may be a name."""


@torch.no_grad()
@typed
def side_effects(
    pair: HookedModelPair,
    edits: Mapping[str, Edit | None],
    texts: Mapping[str, Sequence[Text]],
    *,
    batch_size: Count = 8,
) -> Table[SideEffectRow]:
    """Measure what edits do to texts they should leave alone.

    Edits share passes: everything below the lowest edited layer is computed once per text.

    Args:
        pair: the two models.
        edits: edits by name.
        texts: texts by kind, such as benign prompts with their wanted completions, or `ordinary_texts()`.
        batch_size: rows per forward pass, texts times edits; memory holds about twice the logits of one
            pass.

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
    by_number = dict(enumerate(edits.values(), start=1))
    groups = list(groups_of(pair, {UNMODIFIED: None, **by_number}, batch_size))
    sums: dict[tuple[int, str], Tensor] = {}
    for kind, members in tokenised.items():
        n_texts = max(1, batch_size // (1 + len(edits)))
        for _, chunk in members.batches(n_texts, f"side effects on {kind}"):
            tokens = chunk.tokens.to(pair.device)
            counted = chunk.attended[:, 1:].to(pair.device)
            targets = tokens[:, 1:][counted]
            plain = torch.empty(0)
            for acting, group, _ in groups:
                with side_by_side(acting, list(group.values())) as repeats:
                    logits = acting(tokens, repeats=repeats).unflatten(0, (len(tokens), -1))
                for at, number in enumerate(group):
                    changed = logits[:, at, :-1][counted].float().log_softmax(-1)
                    plain = changed if number == UNMODIFIED else plain
                    found = torch.stack(
                        [
                            kl_div(changed, plain, reduction="sum", log_target=True),
                            nll_loss(changed, targets, reduction="sum"),
                            torch.tensor(float(len(targets)), device=targets.device),
                        ]
                    )
                    sums[number, kind] = sums.get((number, kind), 0) + found.double().cpu()
    rows = []
    for kind in tokenised:
        _, before, n_tokens = sums[UNMODIFIED, kind].tolist()
        for number, (name, edit) in enumerate(edits.items(), start=1):
            kl, after, _ = sums[number, kind].tolist()
            row = SideEffectRow(
                name=name,
                kind="unmodified" if edit is None else edit.kind,
                n_features=0 if edit is None else edit.n_features,
                texts=kind,
                n_tokens=int(n_tokens),
                kl=kl / n_tokens,
                cross_entropy=after / n_tokens,
                cross_entropy_unmodified=before / n_tokens,
            )
            rows.append(row)
    return Table(tuple(rows))
