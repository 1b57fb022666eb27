"""Write tiny language models with random weights and byte-level tokenizers in Hugging Face layout."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Template of SmolLM2 and Qwen, without a generation marker."""
TURNS = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else "
    "'user') + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
"""Template like Gemma's, with BOS, and an end of turn that is not EOS."""
SPECIAL_TOKENS = (
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<start_of_turn>",
    "<end_of_turn>",
)
WHISPER_TOKENS = (
    "<|startoftranscript|>",
    "<|en|>",
    "<|de|>",
    "<|transcribe|>",
    "<|translate|>",
    "<|notimestamps|>",
    *(f"<|{number * 0.02:.2f}|>" for number in range(51)),
)

_SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
}
_TWO_STACKS = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}
"""Sizes of an encoder and a decoder, as BART and Whisper name them."""


def write_tokenizer(
    folder: Path,
    template: str | None = None,
    eos: str = "</s>",
    pad: str | None = None,
    adds_bos: bool = False,
    adds_eos: bool = False,
    more_tokens: Sequence[str] = (),
) -> int:
    """Write a tokenizer of bytes, `SPECIAL_TOKENS` and more of them; return the size of its vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={byte: number for number, byte in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True) for token in (*SPECIAL_TOKENS, *more_tokens)])
    if adds_bos or adds_eos:
        core.post_processor = processors.TemplateProcessing(
            single="<s> " * adds_bos + "$A" + " </s>" * adds_eos,
            special_tokens=[(token, core.token_to_id(token)) for token in ("<s>", "</s>")],
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token=eos, pad_token=pad)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def smollm(folder: Path) -> Path:
    """Write a Llama with ChatML turns, tied embeddings and pad = EOS, like SmolLM2."""
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary = write_tokenizer(folder, CHATML, eos="<|im_end|>", pad="<|im_end|>")
    config = LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=True, eos_token_id=259, **_SIZES)
    return _save(LlamaForCausalLM, config, folder)


def llama(folder: Path) -> Path:
    """Write a Llama without a chat template, whose tokenizer adds BOS."""
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary = write_tokenizer(folder, adds_bos=True)
    return _save(LlamaForCausalLM, LlamaConfig(vocab_size=vocabulary, eos_token_id=257, **_SIZES), folder)


def qwen(folder: Path) -> Path:
    """Write a Qwen with ChatML turns."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    vocabulary = write_tokenizer(folder, CHATML, eos="<|im_end|>", pad="</s>")
    config = Qwen3Config(vocab_size=vocabulary, head_dim=8, eos_token_id=259, **_SIZES)
    return _save(Qwen3ForCausalLM, config, folder)


def gemma(folder: Path) -> Path:
    """Write a Gemma with BOS in its template, an end of turn next to EOS, and capped logits."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    vocabulary = write_tokenizer(folder, TURNS, pad="<s>", adds_bos=True)
    config = Gemma2Config(
        vocab_size=vocabulary, head_dim=8, final_logit_softcapping=3.0, eos_token_id=[257, 261], **_SIZES
    )
    return _save(Gemma2ForCausalLM, config, folder)


def gpt2(folder: Path) -> Path:
    """Write a GPT-2 with learned positions, without a chat template and padding token."""
    from transformers import GPT2Config, GPT2LMHeadModel

    vocabulary = write_tokenizer(folder)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=256,
        n_embd=16,
        n_layer=2,
        n_head=2,
        eos_token_id=257,
        bos_token_id=256,
    )
    return _save(GPT2LMHeadModel, config, folder)


def t5(folder: Path) -> Path:
    """Write a T5, with relative positions, whose output layer is tied to the embeddings and scaled."""
    from transformers import T5Config, T5ForConditionalGeneration

    return _save(T5ForConditionalGeneration, T5Config(**_t5_sizes(folder)), folder)


def t5_untied(folder: Path) -> Path:
    """Write a T5 of version 1.1, whose output layer is not scaled."""
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"}
    return _save(T5ForConditionalGeneration, T5Config(**_t5_sizes(folder), **sizes), folder)


def mt5(folder: Path) -> Path:
    """Write an mT5."""
    from transformers import MT5Config, MT5ForConditionalGeneration

    return _save(MT5ForConditionalGeneration, MT5Config(**_t5_sizes(folder)), folder)


def umt5(folder: Path) -> Path:
    """Write a UMT5."""
    from transformers import UMT5Config, UMT5ForConditionalGeneration

    return _save(UMT5ForConditionalGeneration, UMT5Config(**_t5_sizes(folder)), folder)


def bart(folder: Path) -> Path:
    """Write a BART with learned positions, scaled embeddings, and a bias of its logits."""
    from transformers import BartConfig, BartForConditionalGeneration

    vocabulary = write_tokenizer(folder, pad="<s>", adds_bos=True, adds_eos=True)
    config = BartConfig(
        vocab_size=vocabulary,
        **_TWO_STACKS,
        max_position_embeddings=128,
        scale_embedding=True,
        dropout=0.0,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=256,
        decoder_start_token_id=257,
        forced_eos_token_id=None,
    )
    return _save(BartForConditionalGeneration, config, folder)


def whisper(folder: Path, multilingual: bool = True) -> Path:
    """Write a Whisper for clips of up to 1 s, with the tokens of two languages, and its feature extractor."""
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
    )

    vocabulary = write_tokenizer(folder, pad="</s>", more_tokens=WHISPER_TOKENS)
    config = WhisperConfig(
        vocab_size=vocabulary,
        **_TWO_STACKS,
        num_mel_bins=8,
        max_source_positions=50,
        max_target_positions=64,
        bos_token_id=257,
        eos_token_id=257,
        pad_token_id=257,
        decoder_start_token_id=262,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    _save(WhisperForConditionalGeneration, config, folder)
    GenerationConfig(
        is_multilingual=multilingual, decoder_start_token_id=262, eos_token_id=257
    ).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=8, chunk_length=1, sampling_rate=16000).save_pretrained(folder)
    return folder


def _t5_sizes(folder: Path) -> dict[str, Any]:
    vocabulary = write_tokenizer(folder, pad="<s>", adds_eos=True)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
    tokens = {"eos_token_id": 257, "pad_token_id": 256, "decoder_start_token_id": 256}
    return {"vocab_size": vocabulary, **sizes, **tokens}


ENCODER_DECODERS: dict[str, Callable[[Path], Path]] = {
    "t5": t5,
    "t5_untied": t5_untied,
    "mt5": mt5,
    "umt5": umt5,
    "bart": bart,
}
"""Models whose encoder reads prompts."""

FAMILIES: dict[str, Callable[[Path], Path]] = {
    "smollm": smollm,
    "llama": llama,
    "qwen": qwen,
    "gemma": gemma,
    "gpt2": gpt2,
}


ALL = {**FAMILIES, **ENCODER_DECODERS, "whisper": whisper}


def _save(model: Any, config: Any, folder: Path) -> Path:
    import torch

    torch.manual_seed(0)
    built = model(config)
    with torch.no_grad():  # decisive, so that greedy tokens do not depend on rounding
        built.get_input_embeddings().weight.normal_(std=1.0)
        if hasattr(built, "final_logits_bias"):
            built.final_logits_bias.normal_()
    built.save_pretrained(folder)
    return folder


def randomize(folder: Path, std: float = 0.6, seed: int = 7) -> Path:
    """Replace the weights of a model by larger ones, with which its replies depend on all of the prompt."""
    import torch
    import transformers

    [architecture] = transformers.AutoConfig.from_pretrained(folder).architectures
    model = getattr(transformers, architecture).from_pretrained(folder)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, std, generator=generator)
    model.save_pretrained(folder)
    return folder
