"""Every kernel on a GPU against its results on the CPU: `python -m pytest -m gpu -n 0`."""

import copy

import pytest
import torch
from sae_lens import TrainingSAE
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

from diffsae_lens import dictionaries
from diffsae_lens.dictionaries import _sparse as sparse
from diffsae_lens.training._optimizer import fuse_adam

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
D_IN, D_SAE, N_ROWS, K = 96, 1024, 300, 8
TF32 = {"rtol": 2e-3, "atol": 2e-2}  # 10 bits behind the point, summed over D_IN products


def weights():
    generator = torch.Generator().manual_seed(0)
    shapes = ((N_ROWS, D_IN), (D_IN, D_SAE), (D_SAE,), (D_SAE, D_IN))
    return [torch.randn(shape, generator=generator) for shape in shapes]


def on_gpu(codes):
    return sparse.Codes(
        values=codes.values.cuda(), features=codes.features.cuda(), offsets=codes.offsets.cuda(),
        d_sae=codes.d_sae,
    )  # fmt: skip


@pytest.fixture(params=[None, 5 * D_SAE], ids=["one block", "many blocks"])
def blocks(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(sparse, "DEVICE_BLOCK_SIZE", request.param)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("select", [sparse.topk_codes, sparse.batch_topk_codes])
@pytest.mark.usefixtures("blocks")
def test_what_is_selected_is_the_same_but_for_near_ties(select, scaled):
    x, W_enc, b_enc, W_dec = weights()
    scale = W_dec.norm(dim=-1) if scaled else None
    found = []
    for device in ("cpu", "cuda"):
        inputs = [tensor.to(device) for tensor in (x, W_enc, b_enc)]
        codes = select(*inputs, k=K, scale=None if scale is None else scale.to(device))
        codes = codes[0] if isinstance(codes, tuple) else codes
        assert len(codes.values) == K * N_ROWS
        found.append(codes.to_sparse().to_dense().cpu())
    both = (found[0] != 0) & (found[1] != 0)
    assert both.sum() > 0.98 * K * N_ROWS
    torch.testing.assert_close(found[1][both], found[0][both], **TF32)


def test_gradients_of_the_same_codes_are_the_same():
    x, W_enc, b_enc, W_dec = weights()
    codes = sparse.topk_codes(x, W_enc, b_enc, k=K)
    gradients = []
    for device, given in (("cpu", codes), ("cuda", on_gpu(codes))):
        leaves = [t.to(device).requires_grad_() for t in (x, W_enc, b_enc, W_dec)]
        encoded = sparse.encode_selected(*leaves[:3], given)
        out = sparse.decode_selected(encoded, leaves[3])
        gradients.append([g.cpu() for g in torch.autograd.grad(out.square().mean(), leaves)])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_codes_of_two_parts_are_put_together_alike():
    x, W_enc, b_enc, _ = weights()
    first = sparse.topk_codes(x, W_enc, b_enc, k=K)
    second = sparse.topk_codes(x, W_enc.flip(1), b_enc, k=3)
    expected = sparse.merge_codes(first, second).to_sparse().to_dense()
    found = sparse.merge_codes(on_gpu(first), on_gpu(second)).to_sparse().to_dense()
    torch.testing.assert_close(found.cpu(), expected)


@pytest.mark.parametrize(
    "config_class",
    [
        dictionaries.SparseTopKTrainingSAEConfig,
        dictionaries.SparseBatchTopKTrainingSAEConfig,
        dictionaries.BatchTopKCrosscoderTrainingSAEConfig,
    ],
)
def test_twenty_steps_of_training_lead_to_the_same_loss(config_class):
    torch.manual_seed(0)
    first = TrainingSAE.from_dict(config_class(d_in=D_IN, d_sae=D_SAE, k=K).to_dict())
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(20, 256, D_IN, generator=generator)
    losses = []
    for device in ("cpu", "cuda"):
        sae = copy.deepcopy(first).to(device)
        sae.cfg.device = device
        trainer = SAETrainer(
            SAETrainerConfig(total_training_samples=10**6, train_batch_size_samples=256, lr=1e-3,
                             device=device),
            sae, iter(()),
        )  # fmt: skip
        fuse_adam(trainer)
        losses.append([float(trainer.step(batch.to(device)).loss) for batch in data])
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=2e-2, atol=0)
