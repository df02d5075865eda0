"""Tiny random models of many families, as folders that `load_pair` takes.

Three layers, so that the residual stream after block 1 is not the last layer's, which transformers
shows behind the final norm.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

N_LAYERS = 3
VOCABULARY = 259  # the bytes and three special tokens
WEIGHT_STD = 0.18  # about 1 / sqrt(width): a layer writes as much as it reads
PLANTED = 0.1  # std of a full fine-tune's change, per entry


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model type of transformers, and what makes a model of it tiny."""

    model_type: str
    config: Mapping[str, Any] = field(default_factory=dict)
    embedding: str = "embed_tokens"
    """The name of the module that embeds tokens."""
    head: str = "lm_head"
    """The name of the module that makes logits."""
    has_embedding_state: bool = True
    """Whether the first of transformers' hidden states is the embedding, not block 0's output."""

    def build(self, seed: int = 0, **overrides: Any) -> Any:
        """Make a random model in which every parameter counts, norms and biases too."""
        config = AutoConfig.for_model(self.model_type, **{**self.config, **overrides})
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.data += 0.1 * torch.randn_like(parameter)
                else:
                    parameter.data.normal_(std=WEIGHT_STD)
        return model.eval()


IDS = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
DEPTH = IDS | {"hidden_size": 32, "num_hidden_layers": N_LAYERS}
ALL_HEADS = DEPTH | {
    "intermediate_size": 48, "num_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip
SIZES = ALL_HEADS | {"num_key_value_heads": 2}
HEADS = SIZES | {"head_dim": 8}
EXPERTS = HEADS | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LOCAL_EXPERTS = SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED_EXPERTS = EXPERTS | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1}
LATENT_HEADS = ROUTED_EXPERTS | {
    "num_key_value_heads": 4, "head_dim": 4, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8, "v_head_dim": 8, "first_k_dense_replace": 1,
}  # fmt: skip
GPT = IDS | {"n_embd": 32, "n_layer": N_LAYERS, "n_head": 4, "n_positions": 64}
LINEAR_ATTENTION = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}  # fmt: skip
STATE_SPACE = DEPTH | {"state_size": 8}
MAMBA_HEADS = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8}


def _each(config: Mapping[str, Any], *model_types: str, **fields: Any) -> dict[str, Family]:
    return {name: Family(model_type=name, config=config, **fields) for name in model_types}


FAMILIES: dict[str, Family] = {
    **_each(SIZES, "llama"),
    "llama-tied": Family(model_type="llama", config=SIZES | {"tie_word_embeddings": True}),
    "llama-bias": Family(
        model_type="llama", config=SIZES | {"attention_bias": True, "mlp_bias": True}
    ),
    **_each(GPT, "gpt2", embedding="wte"),
    **_each(ALL_HEADS, "gpt_neox", embedding="embed_in", head="embed_out"),
    **_each(SIZES, "qwen2"),
    **_each(HEADS, "qwen3"),
    **_each(SIZES, "mistral", "phi", "phi3", "olmo", "olmo2", "olmo3", "smollm3", "starcoder2"),
    **_each(HEADS, "gemma", "gemma2", "gemma3_text"),
    **_each(
        HEADS | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY},
        "gemma4_text",
    ),
    **_each(SIZES, "granite", "cohere", "cohere2", "stablelm", "arcee", "apertus", "nanochat"),
    **_each(HEADS, "glm", "glm4", "seed_oss", "hunyuan_v1_dense", "exaone4", "ernie4_5"),
    **_each(HEADS, "nemotron", "bitnet"),
    **_each(GPT | {"rotary_dim": 4}, "gptj", "codegen", embedding="wte"),
    **_each(GPT, "gpt_bigcode", embedding="wte"),
    **_each(GPT, "openai-gpt", embedding="tokens_embed"),
    **_each(
        DEPTH | {
            "num_layers": N_LAYERS, "num_heads": 4, "max_position_embeddings": 64,
            "intermediate_size": 48, "attention_types": [[["global", "local", "global"], 1]],
        },
        "gpt_neo", embedding="wte",
    ),
    **_each(ALL_HEADS | {"ffn_dim": 48, "word_embed_proj_dim": 32}, "opt"),
    **_each(
        IDS | {
            "d_model": 32, "ffn_dim": 48, "num_layers": N_LAYERS, "attention_heads": 4,
            "max_position_embeddings": 64,
        },
        "xglm",
    ),
    **_each(
        IDS | {"hidden_size": 32, "n_layer": N_LAYERS, "n_head": 4},
        "bloom", embedding="word_embeddings",
    ),
    **_each(ALL_HEADS | {"ffn_hidden_size": 48}, "falcon", embedding="word_embeddings"),
    "falcon-7b": Family(  # one key for all heads, attention and MLP in parallel
        model_type="falcon", embedding="word_embeddings",
        config=ALL_HEADS | {"multi_query": True, "parallel_attn": True, "alibi": False},
    ),
    **_each(
        IDS | {"d_model": 32, "n_layers": N_LAYERS, "n_heads": 4, "max_seq_len": 64},
        "mpt", embedding="wte",
    ),
    **_each(LOCAL_EXPERTS, "mixtral", "granitemoe", "phimoe"),
    **_each(LOCAL_EXPERTS | {"head_dim": 8}, "gpt_oss", "minimax_m2"),
    **_each(
        LOCAL_EXPERTS | {"head_dim": 8, "intermediate_size_mlp": 48, "num_experts_per_tok": 1},
        "llama4_text",
    ),
    **_each(EXPERTS, "olmoe", "qwen3_moe"),
    **_each(EXPERTS | {"shared_expert_intermediate_size": 24}, "qwen2_moe"),
    **_each(ROUTED_EXPERTS, "glm4_moe"),
    **_each(
        SIZES | {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24}, "ernie4_5_moe"
    ),
    **_each(LATENT_HEADS, "deepseek_v2", "deepseek_v3"),
    **_each(
        EXPERTS | LINEAR_ATTENTION | {"shared_expert_intermediate_size": 24}, "qwen3_next"
    ),
    **_each(HEADS | LINEAR_ATTENTION, "qwen3_5_text"),
    **_each(SIZES | LINEAR_ATTENTION | {"linear_num_key_heads": 4}, "olmo_hybrid"),
    **_each(HEADS | {"layer_types": ["conv", "full_attention", "conv"]}, "lfm2"),
    **_each(HEADS, "recurrent_gemma"),
    **_each(HEADS | MAMBA_HEADS | {"mamba_d_ssm": 64}, "falcon_h1"),
    **_each(
        LOCAL_EXPERTS | MAMBA_HEADS | {
            "shared_intermediate_size": 24, "layer_types": ["mamba", "attention", "mamba"],
        },
        "granitemoehybrid",
    ),
    **_each(
        SIZES | {
            "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2,
            "mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False,
        },
        "jamba",
    ),
    **_each(STATE_SPACE, "mamba", "falcon_mamba", embedding="embeddings", has_embedding_state=False),
    **_each(
        STATE_SPACE | {"num_heads": 8, "head_dim": 8, "n_groups": 1},
        "mamba2", embedding="embeddings", has_embedding_state=False,
    ),
    **_each(
        DEPTH | {"attention_hidden_size": 32, "context_length": 64},
        "rwkv", embedding="embeddings", head="head", has_embedding_state=False,
    ),
    **_each(HEADS, "helium"),
}  # fmt: skip
"""Every family of the campaign."""


def plant(model: Any, seed: int = 1) -> Any:
    """Change every parameter of the model in place, matrices by one of rank 1; return the model."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            change = torch.randn(parameter.shape, generator=generator)
        else:
            change = torch.randn(*parameter.shape[:-1], 1, generator=generator)
            change = change * torch.randn(parameter.shape[-1], generator=generator)
        parameter.data += PLANTED * change
    return model


def write_model(model: Any, folder: Path) -> Path:
    """Save a model with a byte-level tokenizer."""
    model.save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<bos>", "<eos>", "<pad>"]
    core = Tokenizer(models.BPE({c: i for i, c in enumerate([*specials, *alphabet])}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    core.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    ).save_pretrained(folder)
    return folder


def read_model(folder: Path) -> Any:
    """Load a model with plain transformers, in evaluation mode."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    return model.eval().requires_grad_(False)
