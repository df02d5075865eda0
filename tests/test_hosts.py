"""Holds on other packages that none of them promises to keep: one test per hold, which says what moved."""

import importlib
from types import SimpleNamespace

import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from sae_lens import (
    BatchTopKTrainingSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TrainingSAE,
    register_sae_class,
)
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.registry import get_sae_class
from sae_lens.training.activation_scaler import ActivationWhitening
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from transformers import AutoConfig, DynamicCache

from diffsae_lens import _hosts
from diffsae_lens.pair._loading import boot_bridge
from tests.conftest import tiny_llama, with_lora
from tests.families.models import FAMILIES
from tests.standin import serving

# --- torch ------------------------------------------------------------------------------------------


def test_torch_counts_writes_to_a_tensor():
    tensor = torch.zeros(3)
    before = _hosts.tensor_version(tensor)
    tensor.clone().add_(1)
    assert _hosts.tensor_version(tensor) == before, "torch counts a write to a copy as one here"
    tensor.add_(1)
    assert _hosts.tensor_version(tensor) > before, (
        "torch no longer counts writes in Tensor._version"
    )


def test_torch_counts_the_users_of_memory():
    tensor = torch.zeros(3)
    alone = _hosts.storage_users(tensor)
    view = tensor.detach()
    moved = "torch no longer counts the tensors on one storage in _storage_Use_Count"
    assert _hosts.storage_users(tensor) > alone, moved
    del view
    assert _hosts.storage_users(tensor) == alone, moved


def test_torch_keeps_gradient_hooks_on_the_tensor():
    leaf = torch.zeros(3, requires_grad=True)
    assert not _hosts.has_gradient_hooks(leaf)
    leaf.register_hook(lambda gradient: gradient)
    assert _hosts.has_gradient_hooks(leaf), "register_hook no longer fills Tensor._backward_hooks"


def test_torch_moves_a_module_by_apply():
    seen = []

    class Watched(torch.nn.Linear):
        def _apply(self, fn, recurse=True):
            seen.append(recurse)
            return super()._apply(fn, recurse)

    Watched(2, 2).to(torch.float64)
    assert seen, "Module.to no longer calls Module._apply, so moving a pair moves neither model"
    module = torch.nn.Linear(2, 2)
    _hosts.apply_to_tensors(module, lambda tensor: tensor.double(), True)
    assert module.weight.dtype == torch.float64, "Module._apply no longer changes parameters"


def test_torchs_adam_reads_fused_at_every_step():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weight])
    _hosts.use_fused_step(optimizer)
    weight.grad = torch.ones(3)
    with torch.profiler.profile() as profile:
        optimizer.step()
    names = {event.key for event in profile.key_averages()}
    assert any("fused_adam" in name for name in names), (
        "Adam.step no longer reads `fused` from its param_groups"
    )


def test_torch_keeps_hooks_in_attributes_of_that_name():
    outer = torch.nn.Sequential(torch.nn.Linear(2, 2))
    assert not any(_hosts.hooks_of(outer))
    outer[0].register_forward_hook(lambda *_: None)
    outer.register_full_backward_hook(lambda *_: None)
    outer.register_state_dict_pre_hook(lambda *_: None)
    assert sum(map(len, _hosts.hooks_of(outer))) >= 3, "torch keeps hooks somewhere else"


# --- PEFT -------------------------------------------------------------------------------------------


def test_peft_switches_layers_by_disable_adapters():
    model = with_lora(tiny_llama(), scale=0.5)
    tokens = torch.tensor([[5, 6, 7]])
    layers = [module for module in model.modules() if hasattr(module, "disable_adapters")]
    assert layers, "PEFT's layers have no `disable_adapters` any more"
    tuned = model(tokens).logits
    with model.disable_adapter():
        base = model(tokens).logits
        assert all(layer.disable_adapters for layer in layers)
    for names, wanted in (((), base), (("default",), tuned)):
        before = {_hosts.switch_adapter(layer, names) for layer in layers}
        assert (() if names else ("default",)) in before
        assert torch.equal(model(tokens).logits, wanted), (
            "PEFT's layers no longer ask `_disable_adapters` and `_active_adapter` which adapters act"
        )


# --- TransformerLens --------------------------------------------------------------------------------


def test_a_bridge_keeps_what_it_wraps_under_one_name(tokenizer):
    plain = tiny_llama()
    names = [name for name, _ in (*plain.named_parameters(), *plain.named_buffers())]
    found = _hosts.tensors_of_bridge(boot_bridge(tiny_llama(), tokenizer).original_model)
    assert set(names) <= set(found), "a bridge no longer keeps a submodule as `_original_component`"


def test_transformerlens_tells_hooks_apart_by_their_level(pair, tokens):
    bridge, name = pair.finetuned, "blocks.1.hook_resid_post"
    fired: list[str] = []
    with bridge.hooks(fwd_hooks=[(name, lambda value, hook: fired.append("outer"))]):
        with _hosts.hooks_on(bridge, [(name, lambda value, hook: fired.append("inner"))]):
            bridge(tokens)
        assert len(fired) == 2, "HookPoint.add_hook no longer adds beside other hooks"
        bridge(tokens)
    assert fired == ["outer", "inner", "outer"], "HookPoint.remove_hooks no longer goes by `level`"
    plain = bridge(tokens)
    with _hosts.hooks_on(bridge, [(name, lambda value, hook: 0 * value)]):
        inside = bridge(tokens)
    assert torch.equal(
        inside, bridge.run_with_hooks(tokens, fwd_hooks=[(name, lambda value, hook: 0 * value)])
    ), "a hook point that was looked up once is no longer the one that runs"
    assert torch.equal(bridge(tokens), plain)
    assert bridge.context_level == 0


def test_a_bridges_components_can_be_left_out(pair, tokens):
    bridge, hook = pair.finetuned, "blocks.1.hook_resid_post"
    expected = bridge(tokens)
    with _hosts.bare_where_unhooked(bridge, [hook], "eager"):
        bare = [m for m in bridge.original_model.modules() if "forward" in vars(m)]
        assert len(bare) > 20, "a bridge's components are no longer GeneralizedComponents"
        assert bridge.blocks[1] not in bare, "`get_hooks` no longer names a block's own hook points"
        assert torch.allclose(bridge(tokens), expected, atol=1e-5), (
            "`original_component` no longer computes what a component does"
        )
    norm, own = bridge.blocks[0].ln1, torch.zeros(())
    with _hosts.bare_where_unhooked(bridge, [], "sdpa"):
        assert bridge.original_model.config._attn_implementation == "sdpa"
        vars(norm)["forward"] = lambda value: value * own
        assert not torch.allclose(bridge(tokens), expected), "`forward` of an object is not called"
    assert torch.equal(bridge(tokens), expected)


# --- SAELens ----------------------------------------------------------------------------------------


def test_saelens_keeps_classes_in_two_registries():
    importlib.import_module("diffsae_lens.dictionaries")
    inference, training = _hosts.registered_architectures()
    assert {"jumprelu", "crosscoder"} <= inference, "SAE_CLASS_REGISTRY has no inference classes"
    assert {"batchtopk", "l1_crosscoder"} <= training, "SAE_TRAINING_CLASS_REGISTRY has no classes"


def test_saelens_registers_again_what_was_forgotten():
    class Mine(StandardSAE):
        pass

    class Other(StandardSAE):
        pass

    for _ in range(2):
        _hosts.forget_registration("mine", Mine)
        register_sae_class("mine", Mine, StandardSAEConfig)
    assert get_sae_class("mine")[0] is Mine
    _hosts.forget_registration("mine", Other)
    with pytest.raises(ValueError, match="already registered"):
        register_sae_class("mine", Other, StandardSAEConfig)
    _hosts.forget_registration("mine", Mine)
    assert "mine" not in _hosts.registered_architectures()[0], (
        "SAELens no longer keeps (class, config class) in SAE_CLASS_REGISTRY"
    )


def saelens_trainer(n_steps=6):
    def batches():
        generator = torch.Generator().manual_seed(0)
        while True:
            yield {"hook": 3 + torch.randn(8, 4, generator=generator)}

    config = BatchTopKTrainingSAEConfig(d_in=4, d_sae=8, k=2)
    return MultiSAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=8 * n_steps, train_batch_size_samples=8, lr=1e-3, lr_end=1e-3,
            n_checkpoints=2, logger=LoggingConfig(log_to_wandb=False),
        ),
        saes={"one": TrainingSAE.from_dict(config.to_dict())},
        hook_names={"one": "hook"},
        data_provider=batches(),
    )  # fmt: skip


def test_saelens_trainer_steps_the_optimizer_it_made():
    trainer = saelens_trainer()
    optimizer = _hosts.adam_of(trainer.trainers["one"])
    assert isinstance(optimizer, torch.optim.Adam), "SAETrainer.optimizer is no Adam any more"
    trainer.fit()
    assert optimizer.state, "SAETrainer no longer steps the optimiser in its `optimizer`"


def test_saelens_trainer_applies_and_folds_the_whitening():
    trained = []
    for shift in (0.0, 3.0):
        torch.manual_seed(0)
        trainer = saelens_trainer()
        eye = torch.eye(4)
        whitening = ActivationWhitening(torch.full((4,), shift), eye, eye)
        _hosts.normalize_with(trainer.trainers["one"], whitening)
        trained.append(trainer.fit()["one"])
    plain, centred = (sae.b_dec.detach() for sae in trained)
    assert (centred - plain).mean() > 2, (
        "SAETrainer no longer reads activation_scaler.whitening, or does not fold it at the end"
    )


def test_saelens_trainer_counts_steps_and_checkpoints_where_we_set_them():
    trainer = saelens_trainer()
    assert len(trainer.checkpoint_thresholds) == 2, (
        "MultiSAETrainer plans its checkpoints elsewhere"
    )
    drawn = []
    provider = trainer.data_provider
    trainer.data_provider = iter(drawn.append(batch) or batch for batch in provider)
    trainer.n_training_samples = trainer.checkpoint_thresholds[0] + 1
    _hosts.go_past_checkpoint(trainer)
    assert trainer.n_training_steps == 1
    assert trainer.trainers["one"].n_training_steps == 1
    assert len(trainer.checkpoint_thresholds) == 1
    trainer.n_training_samples = 8 * 5
    for one in trainer.trainers.values():
        one.n_training_samples = 8 * 5
    trainer.fit()
    assert len(drawn) == 1, (
        "MultiSAETrainer.fit no longer goes on from n_training_samples with its data_provider"
    )


# --- huggingface_hub --------------------------------------------------------------------------------


def test_the_hub_raises_its_http_librarys_errors(monkeypatch):
    from huggingface_hub import constants, get_session

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    session = get_session()
    with pytest.raises(_hosts.hub_error()):  # another library's error otherwise
        session.send(session.build_request("GET", "http://127.0.0.1:9/"))


# --- neuronpedia ------------------------------------------------------------------------------------


def test_neuronpedias_requests_go_where_they_are_told_and_no_further():
    from neuronpedia import FeatureRequest

    with serving(lambda asked: (302, b"")) as stand_in:
        request = FeatureRequest(api_key="key")
        _hosts.bind_requests(request, f"{stand_in.url}/api", 1.0)
        with pytest.raises(Exception, match="invalid JSON"):
            request.get("model", "1-set", 3)
    assert [asked.path for asked in stand_in.asked] == ["/api/feature/model/1-set/3"], (
        "NPRequest no longer goes through BASE_URL and send_request"
    )


# --- transformers, IPython --------------------------------------------------------------------------


def test_transformers_configs_know_where_they_were_loaded_from(tmp_path):
    model = tiny_llama()
    model.config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert _hosts.loaded_from(loaded) == str(tmp_path), (
        "configs no longer keep their folder in _name_or_path"
    )
    assert _hosts.loaded_from(SimpleNamespace()) == ""


def test_transformers_saves_what_is_no_longer_quantised(tmp_path):
    model = tiny_llama()
    model.config.quantization_config = {"quant_method": "gguf"}
    model.hf_quantizer = SimpleNamespace(is_serializable=lambda **_: False)
    _hosts.forget_quantization(model)
    model.save_pretrained(tmp_path)
    assert not hasattr(AutoConfig.from_pretrained(tmp_path), "quantization_config"), (
        "save_pretrained asks something else than config.quantization_config for quantisation"
    )


def test_transformers_says_which_models_have_fused_attention():
    assert _hosts.has_fused_attention(tiny_llama())
    capped = FAMILIES["gemma2"].build()
    assert not _hosts.has_fused_attention(capped), "`_supports_sdpa` is true of capped scores"


def test_transformers_reorders_one_layer_of_a_cache():
    cache = DynamicCache()
    for layer in range(2):
        rows = torch.arange(2.0).view(2, 1, 1, 1)
        cache.update(rows, -rows, layer)
    _hosts.reorder_cache_layer(cache, 0, torch.tensor([1, 1, 0]))
    _hosts.reorder_cache_layer(cache, 2, torch.tensor([1]))  # a layer that keeps nothing
    assert cache.layers[0].keys.flatten().tolist() == [1, 1, 0], (
        "Cache.layers no longer holds layers with reorder_cache"
    )
    assert cache.layers[0].values.flatten().tolist() == [-1, -1, 0]
    assert cache.layers[1].keys.flatten().tolist() == [0, 1]


def test_ipython_shows_classes_by_a_formatter_for_html():
    formatter = DisplayFormatter().formatters["text/html"]
    shell = SimpleNamespace(display_formatter=SimpleNamespace(formatters={"text/html": formatter}))
    shown = SimpleNamespace()
    _hosts.show_as_html(shell, "types", "SimpleNamespace", lambda _: "<b>shown</b>")
    assert formatter(shown) == "<b>shown</b>", "IPython's HTML formatter has no for_type_by_name"
    for _ in range(2):
        _hosts.show_as_before(shell, "types", "SimpleNamespace")
    assert formatter(shown) is None, "IPython's HTML formatter no longer forgets a class by `pop`"
