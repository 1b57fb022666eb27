"""Replies of each model family in shared batches against those of `generate`."""

import pytest
import random_language_models as tiny
import torch
from greedy_replies import REPLY_LENGTHS, expected, prompts, replies
from peft import LoraConfig, get_peft_model

from rayfuse.decoding.decoder import Decoder
from rayfuse.decoding.request import DecodeRequest, SamplingParams
from rayfuse.errors import InvalidInputError, SpecError


@pytest.mark.parametrize("family", list(tiny.CAUSAL))
def test_shared_batches_give_the_tokens_of_generate(family):
    model = tiny.CAUSAL[family]()
    asked = list(zip(prompts(), REPLY_LENGTHS, strict=True))
    requests = [DecodeRequest(prompt, SamplingParams(max_tokens=count)) for prompt, count in asked]
    wanted = [expected(model, prompt, count) for prompt, count in asked]
    decoder = Decoder(model, max_slots=3, max_length=64, prefill_tokens=16)
    assert replies(decoder, requests) == wanted
    assert [list(done.token_ids) for done in decoder.generate(requests)] == wanted


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_encoder_decoder_models_in_shared_batches(family):
    model = getattr(tiny, family)()
    asked = list(zip(prompts(), REPLY_LENGTHS, strict=True))
    requests = [
        DecodeRequest(source=torch.tensor(source), params=SamplingParams(max_tokens=count))
        for source, count in asked
    ]
    wanted = [
        model.generate(torch.tensor([source]), max_new_tokens=count, do_sample=False)[0, 1:].tolist()
        for source, count in asked
    ]
    assert replies(Decoder(model, max_slots=3, max_length=64, max_source_length=32), requests) == wanted


def test_whisper_reads_features_behind_decoder_prompts_of_different_lengths():
    model = tiny.whisper()
    generator = torch.Generator().manual_seed(0)
    asked = [(torch.randn(8, 40, generator=generator), [tiny.START, *range(length)]) for length in (0, 3, 1)]
    requests = [
        DecodeRequest(prompt, SamplingParams(max_tokens=12), source=source) for source, prompt in asked
    ]
    wanted = []
    for source, prompt in asked:
        inputs = {"input_features": source[None], "decoder_input_ids": torch.tensor([prompt])}
        # WhisperForConditionalGeneration.generate adds a prompt of its own.
        reply = super(type(model).__mro__[1], model).generate(**inputs, max_new_tokens=12, do_sample=False)
        wanted.append(reply[0, len(prompt) :].tolist())
    assert (
        replies(Decoder(model, max_slots=3, max_length=64, max_source_length=20), requests, every=2) == wanted
    )


def test_source_embeddings_and_encoder_states_equal_source_tokens():
    model = tiny.t5()
    source = torch.tensor(prompts()[0])
    embeddings = model.get_input_embeddings()(source).detach()
    with torch.no_grad():
        states = model.get_encoder()(source[None]).last_hidden_state[0]
    params = SamplingParams(max_tokens=10)
    decoder = Decoder(model, max_length=32, max_source_length=32)
    requests = [
        DecodeRequest(source=source, params=params),
        DecodeRequest(source=embeddings, params=params),
        DecodeRequest(encoder_states=states, params=params),
    ]
    tokens = [done.token_ids for done in decoder.generate(requests)]
    assert tokens[0] == tokens[1] == tokens[2]


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_soft_tokens_between_texts_give_the_tokens_of_generate(family):
    model = tiny.CAUSAL[family]()
    size = model.get_input_embeddings().weight.shape[1]
    requests, wanted = [], []
    for seed, (before, after) in enumerate([([4, 5, 6], [7, 8]), ([], [9]), ([10, 11], [])]):
        soft = torch.randn(5, size, generator=torch.Generator().manual_seed(seed))
        embed = model.get_input_embeddings()
        embeddings = torch.cat(
            [
                embed(torch.tensor(before, dtype=torch.long)),
                soft,
                embed(torch.tensor(after, dtype=torch.long)),
            ]
        )
        wanted.append(expected(model, [], 12, inputs_embeds=embeddings[None].detach()))
        requests.append(DecodeRequest([before, soft, after], SamplingParams(max_tokens=12)))
    requests.append(DecodeRequest(prompts()[0], SamplingParams(max_tokens=12)))
    wanted.append(expected(model, prompts()[0], 12))
    assert replies(Decoder(model, max_slots=4, max_length=40, prefill_tokens=8), requests) == wanted


def test_image_features_of_a_vision_language_model_as_soft_tokens():
    model = tiny.llava()
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[5, 6, *[tiny.IMAGE] * 4, 7, 8]])
    reply = model.generate(ids, pixel_values=pixels, max_new_tokens=12, do_sample=False)
    features = model.get_image_features(pixel_values=pixels).pooler_output[0].detach()
    params = SamplingParams(max_tokens=12)
    requests = [DecodeRequest([[5, 6], features, [7, 8]], params), DecodeRequest(prompts()[0], params)]
    done = replies(Decoder(model, max_length=64), requests)
    assert done == [reply[0, 8:].tolist(), expected(model, prompts()[0], 12)]


def test_cross_attention_states_of_a_causal_model_per_request():
    model = tiny.gpt2_with_cross_attention()
    prompt = prompts()[0]
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(length, 32, generator=generator) for length in (4, 7)]
    wanted = [
        model.generate(
            torch.tensor([prompt]),
            encoder_hidden_states=each[None],
            max_new_tokens=10,
            do_sample=False,
            use_cache=False,
        )[0, len(prompt) :].tolist()
        for each in states
    ]
    requests = [DecodeRequest(prompt, SamplingParams(max_tokens=10), encoder_states=each) for each in states]
    decoder = Decoder(model, max_length=40)
    assert replies(decoder, requests) == wanted
    assert wanted[0] != wanted[1]
    assert [list(done.token_ids) for done in decoder.generate(requests)] == wanted


def test_an_architecture_that_cannot_share_batches_is_refused():
    model = tiny.llama()
    model.model.rotary_emb.register_forward_pre_hook(
        lambda module, args, kwargs: (
            args,
            kwargs | {"position_ids": kwargs["position_ids"][:1].expand_as(kwargs["position_ids"])},
        ),
        with_kwargs=True,
    )
    with pytest.raises(
        SpecError, match="LlamaForCausalLM cannot decode requests of different lengths in one batch"
    ):
        Decoder(model)


def test_models_whose_layers_have_no_slots_are_refused():
    with pytest.raises(SpecError, match="whose state has no slots|takes no position_ids"):
        Decoder(tiny.mamba())


def test_adapters_are_mixed_in_a_batch():
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(tiny.llama(), lora, adapter_name="first")
    model.add_adapter("second", lora)
    model.eval()
    prompt = prompts()[0]
    wanted = []
    for name in ("first", "second"):
        model.set_adapter(name)
        wanted.append(expected(model, prompt, 10))
    with model.disable_adapter():
        wanted.append(expected(model, prompt, 10))
    assert wanted[0] != wanted[1] != wanted[2] != wanted[0]
    params = SamplingParams(max_tokens=10)
    requests = [DecodeRequest(prompt, params, adapter=name) for name in ("first", "second", "__base__")]
    decoder = Decoder(model, max_slots=3, max_length=64)
    assert replies(decoder, requests, every=2) == wanted
    assert [list(done.token_ids) for done in decoder.generate(requests)] == wanted
    with pytest.raises(InvalidInputError, match="adapter: the model has no adapter 'third'; choose one of"):
        decoder.submit(DecodeRequest(prompt, params, adapter="third"))
