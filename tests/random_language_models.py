"""Language models of each family with random weights, and a tokenizer of bytes, for tests of decoding."""

from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    CLIPVisionConfig,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w"), ("{", '"'), ('"', ":")]
END, START, PAD = (256 + len(MERGES) + index for index in range(3))
VOCAB = PAD + 6
"""Some models have more logits than their tokenizer has tokens."""
IMAGE = PAD + 1
CONTEXT = 96

_TOKENS = {"vocab_size": VOCAB, "bos_token_id": START, "eos_token_id": END, "pad_token_id": PAD}
_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT,
}


def llama(**changes: Any) -> LlamaForCausalLM:
    return _random(LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **_SIZES, **(_TOKENS | changes))))


def qwen3() -> Qwen3ForCausalLM:
    return _random(Qwen3ForCausalLM(Qwen3Config(num_hidden_layers=2, **_SIZES, **_TOKENS)))


def gemma3() -> Gemma3ForCausalLM:
    """Sliding windows of 6 positions in two of three layers."""
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    config = Gemma3TextConfig(num_hidden_layers=3, layer_types=layers, sliding_window=6, **_SIZES, **_TOKENS)
    return _random(Gemma3ForCausalLM(config))


def mistral() -> MistralForCausalLM:
    """Sliding windows of 5 positions in all layers."""
    return _random(
        MistralForCausalLM(MistralConfig(num_hidden_layers=2, sliding_window=5, **_SIZES, **_TOKENS))
    )


def gpt2() -> GPT2LMHeadModel:
    """Learned positions."""
    return _random(
        GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, **_TOKENS))
    )


def gpt2_with_cross_attention() -> GPT2LMHeadModel:
    config = GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, add_cross_attention=True, **_TOKENS
    )
    return _random(GPT2LMHeadModel(config))


def llava() -> LlavaForConditionalGeneration:
    """Vision–language model of images with 28 × 28 pixels in 4 tokens."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    vision = CLIPVisionConfig(hidden_size=16, intermediate_size=32, **sizes)
    text = LlamaConfig(num_hidden_layers=2, **_SIZES, **_TOKENS)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, image_seq_length=4)
    return _random(LlavaForConditionalGeneration(config))


def mamba() -> MambaForCausalLM:
    """State-space model, without keys and values."""
    return _random(
        MambaForCausalLM(MambaConfig(hidden_size=16, num_hidden_layers=1, state_size=4, **_TOKENS))
    )


def t5() -> T5ForConditionalGeneration:
    """Relative positions."""
    config = T5Config(
        d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=PAD, **_TOKENS
    )
    return _random(T5ForConditionalGeneration(config))


def bart() -> BartForConditionalGeneration:
    layers = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    limits = {"max_position_embeddings": CONTEXT, "forced_eos_token_id": None, "decoder_start_token_id": END}
    return _random(
        BartForConditionalGeneration(BartConfig(d_model=32, **layers, **heads, **limits, **_TOKENS))
    )


def whisper() -> WhisperForConditionalGeneration:
    """Whisper for 8 mel bands × 40 frames."""
    layers = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    limits = {"max_source_positions": 20, "max_target_positions": CONTEXT, "num_mel_bins": 8}
    tokens = {"suppress_tokens": None, "begin_suppress_tokens": None, "decoder_start_token_id": START}
    config = WhisperConfig(d_model=32, **layers, **heads, **limits, **tokens, **_TOKENS)
    return _random(WhisperForConditionalGeneration(config))


CAUSAL: dict[str, Callable[[], nn.Module]] = {
    "llama": llama,
    "qwen3": qwen3,
    "gemma3": gemma3,
    "mistral": mistral,
    "gpt2": gpt2,
}


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level tokenizer: a token per byte, a few words, and three special tokens."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    order = sorted(letters)
    vocabulary = {letter: index for index, letter in enumerate(order)}
    vocabulary |= {left + right: 256 + index for index, (left, right) in enumerate(MERGES)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    special = {"eos_token": "</s>", "bos_token": "<s>", "pad_token": "<pad>"}
    backend.add_special_tokens(list(special.values()))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def _random(model: nn.Module) -> Any:
    """Give weights that make replies differ: the usual small ones repeat one token."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3, generator=generator)
    return model.eval()
