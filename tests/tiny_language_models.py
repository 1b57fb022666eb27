"""Write tiny causal language models with random weights and byte-level tokenizers in Hugging Face layout."""

from collections.abc import Callable
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

_SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
}


def write_tokenizer(
    folder: Path,
    template: str | None = None,
    eos: str = "</s>",
    pad: str | None = None,
    adds_bos: bool = False,
) -> int:
    """Write a tokenizer of bytes and `SPECIAL_TOKENS`; return the size of its vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={byte: number for number, byte in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    if adds_bos:
        bos = core.token_to_id("<s>")
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
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


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "smollm": smollm,
    "llama": llama,
    "qwen": qwen,
    "gemma": gemma,
    "gpt2": gpt2,
}


def _save(model: Any, config: Any, folder: Path) -> Path:
    import torch

    torch.manual_seed(0)
    built = model(config)
    with torch.no_grad():  # decisive, so that greedy tokens do not depend on rounding
        built.get_input_embeddings().weight.normal_(std=1.0)
    built.save_pretrained(folder)
    return folder


def randomize(folder: Path, std: float = 0.6, seed: int = 7) -> Path:
    """Replace the weights of a model by larger ones, with which its replies depend on all of the prompt."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, std, generator=generator)
    model.save_pretrained(folder)
    return folder
