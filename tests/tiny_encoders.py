"""Write tiny encoders with random weights in Hugging Face layout."""

from pathlib import Path

_WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "which",
    "colour",
    "pitch",
    "is",
    "this",
    "it",
    "here",
    "?",
    "red",
    "green",
    "blue",
]
_LAYERS = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "hidden_dropout_prob": 0.0,
}


def bert(folder: Path) -> Path:
    """Write a text encoder with a vocabulary of 15 tokens and 32 positions."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = {word: number for number, word in enumerate(_WORDS)}
    BertTokenizerFast(vocab=words, model_max_length=32).save_pretrained(folder)
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=32, **_LAYERS)).save_pretrained(
        folder
    )
    return folder


def vit(folder: Path) -> Path:
    """Write an image encoder for 16 × 16 pixels."""
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    ViTModel(ViTConfig(image_size=16, patch_size=8, **_LAYERS)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def clip(folder: Path) -> Path:
    """Write a model of two encoders, for images of 16 × 16 pixels and for texts."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    text = {**_LAYERS, "vocab_size": 32, "bos_token_id": 1, "eos_token_id": 2}
    vision = {**_LAYERS, "image_size": 16, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    side = {"height": 16, "width": 16}
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=side).save_pretrained(folder)
    return folder


def resnet(folder: Path) -> Path:
    """Write a convolutional image encoder with feature maps instead of tokens, batch norm, and no hidden_size."""
    from transformers import ConvNextImageProcessorPil, ResNetConfig, ResNetModel

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(folder)
    ConvNextImageProcessorPil(size={"shortest_edge": 32}).save_pretrained(folder)
    return folder


def wav2vec2(folder: Path) -> Path:
    """Write an audio encoder at 8000 Hz that skips layers and masks positions in training, like published ones."""
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    layers = {key: value for key, value in _LAYERS.items() if key != "hidden_dropout_prob"}
    config = Wav2Vec2Config(
        **layers,
        conv_dim=(8, 8),
        conv_stride=(5, 4),
        conv_kernel=(10, 4),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        layerdrop=0.9,
        mask_time_prob=0.5,
    )
    Wav2Vec2Model(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(folder)
    return folder


def whisper(folder: Path) -> Path:
    """Write an encoder and decoder for audio of up to 1 s at 16000 Hz."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    sizes = {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
    sizes |= {name.replace("encoder", "decoder"): size for name, size in sizes.items()}
    config = WhisperConfig(
        **sizes,
        vocab_size=8,
        d_model=16,
        num_mel_bins=8,
        max_source_positions=50,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        encoder_layerdrop=0.9,
    )
    WhisperModel(config).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=8, chunk_length=1, sampling_rate=16000).save_pretrained(folder)
    return folder


def roberta(folder: Path) -> Path:
    """Write a text encoder whose positions start after the padding index."""
    from transformers import BertTokenizerFast, RobertaConfig, RobertaModel

    words = {word: number for number, word in enumerate(_WORDS)}
    BertTokenizerFast(vocab=words, model_max_length=32).save_pretrained(folder)
    config = RobertaConfig(vocab_size=len(words), max_position_embeddings=33, pad_token_id=0, **_LAYERS)
    RobertaModel(config).save_pretrained(folder)
    return folder


def gpt2(folder: Path) -> Path:
    """Write a causal text encoder with transposed linear layers and without a padding token, like published ones."""
    from transformers import BertTokenizerFast, GPT2Config, GPT2Model

    words = {word: number for number, word in enumerate(_WORDS)}
    BertTokenizerFast(vocab=words, model_max_length=32, pad_token=None).save_pretrained(folder)
    config = GPT2Config(
        vocab_size=len(words), n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=2, eos_token_id=3
    )
    GPT2Model(config).save_pretrained(folder)
    return folder


def llama(folder: Path) -> Path:
    """Write a causal text encoder with rotary positions."""
    from transformers import BertTokenizerFast, LlamaConfig, LlamaModel

    words = {word: number for number, word in enumerate(_WORDS)}
    BertTokenizerFast(vocab=words, model_max_length=32).save_pretrained(folder)
    sizes = {key: value for key, value in _LAYERS.items() if key != "hidden_dropout_prob"}
    config = LlamaConfig(vocab_size=len(words), num_key_value_heads=1, max_position_embeddings=32, **sizes)
    LlamaModel(config).save_pretrained(folder)
    return folder


def dinov2(folder: Path) -> Path:
    """Write an image encoder for 16 × 16 pixels with a mask token that only pretraining uses."""
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    sizes = {key: value for key, value in _LAYERS.items() if key != "intermediate_size"}
    Dinov2Model(Dinov2Config(image_size=16, patch_size=8, mlp_ratio=2, **sizes)).save_pretrained(folder)
    side = {"height": 16, "width": 16}
    BitImageProcessorPil(size={"shortest_edge": 18}, crop_size=side).save_pretrained(folder)
    return folder


def hubert(folder: Path) -> Path:
    """Write an audio encoder at 8000 Hz."""
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    layers = {key: value for key, value in _LAYERS.items() if key != "hidden_dropout_prob"}
    config = HubertConfig(
        **layers,
        conv_dim=(8, 8),
        conv_stride=(5, 4),
        conv_kernel=(10, 4),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )
    HubertModel(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(folder)
    return folder


def ast(folder: Path) -> Path:
    """Write an Audio Spectrogram Transformer over 32 frames."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    config = ASTConfig(
        patch_size=8, frequency_stride=8, time_stride=8, max_length=32, num_mel_bins=16, **_LAYERS
    )
    ASTModel(config).save_pretrained(folder)
    ASTFeatureExtractor(num_mel_bins=16, max_length=32, sampling_rate=16000).save_pretrained(folder)
    return folder


def speech(folder: Path, kind: str) -> Path:
    """Write a speech encoder at 16000 Hz whose extractor has an attention mask (`group_norm` has none)."""
    import transformers

    layers = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    convolutions = {
        "conv_dim": (8, 8),
        "conv_stride": (5, 4),
        "conv_kernel": (10, 4),
        "num_feat_extract_layers": 2,
    }
    positions = {
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2,
        "feat_extract_norm": "layer",
    }
    name, options = {
        "wav2vec2": ("Wav2Vec2", positions),
        "hubert": ("Hubert", positions),
        "wavlm": ("WavLM", positions),
        "unispeech": ("UniSpeech", positions),
        "unispeech_sat": ("UniSpeechSat", positions),
        "sew": ("SEW", {**positions, "squeeze_factor": 2}),
        "group_norm": ("Wav2Vec2", {**positions, "feat_extract_norm": "group"}),
        "wav2vec2_bert": ("Wav2Vec2Bert", {"feature_projection_input_dim": 160}),
    }[kind]
    is_spectral = kind == "wav2vec2_bert"
    config = getattr(transformers, f"{name}Config")(
        **layers, **({} if is_spectral else convolutions), **options
    )
    getattr(transformers, f"{name}Model")(config).save_pretrained(folder)
    extractor = (
        transformers.SeamlessM4TFeatureExtractor()
        if is_spectral
        else transformers.Wav2Vec2FeatureExtractor(return_attention_mask=kind != "group_norm")
    )
    extractor.save_pretrained(folder)
    return folder
