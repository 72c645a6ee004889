"""Random models that hear, of some ten thousand parameters, and sounds for them: a low and a high tone."""

from __future__ import annotations

import base64
import io
import json
import math
import wave
from pathlib import Path

import torch

_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
          "initializer_range": 0.2}  # fmt: skip


def tone(number: int, seconds: float = 0.4, rate: int = 8000, channels: int = 1) -> bytes:
    """A WAV file; odd numbers are high, even ones low."""
    pitch = (1800 if number % 2 else 150) + 3 * (number % 40)
    values = [round(12000 * math.sin(2 * math.pi * pitch * t / rate)) for t in range(round(seconds * rate))]
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(b"".join(v.to_bytes(2, "little", signed=True) * channels for v in values))
    return made.getvalue()


def as_url(sound: bytes) -> str:
    return f"data:audio/wav;base64,{base64.b64encode(sound).decode()}"


def whisper_tokenizer(languages: bool = True):
    """One of letters, with Whisper's own words in their order: their numbers are counted from the first."""
    from tokenizers import pre_tokenizers
    from transformers import WhisperTokenizer
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    out = WhisperTokenizer(vocab={c: i for i, c in enumerate(letters)}, merges=[], pad_token="<|endoftext|>",
                           model_max_length=40)  # fmt: skip
    several = [*list(LANGUAGES)[:99], "translate", "transcribe"] if languages else []
    words = ["endoftext", "startoftranscript", *several, "startofprev", "notimestamps"]
    out.add_special_tokens({"extra_special_tokens": [f"<|{word}|>" for word in words]})
    return out


def write_whisper(folder: Path, languages: bool = True) -> Path:
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
    )

    tokenizer = whisper_tokenizer(languages)
    ids = tokenizer.get_added_vocab()
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    common = {"decoder_start_token_id": start, "bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(WhisperConfig(
        vocab_size=len(tokenizer), d_model=32, num_mel_bins=8, max_source_positions=100, max_target_positions=40,
        encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64,
        decoder_ffn_dim=64, init_std=0.2, **common,
    ))  # fmt: skip
    with torch.no_grad():  # the token that ends a text pads too, and has no row of its own otherwise
        model.get_input_embeddings().weight[end].normal_(std=0.2)
    tasks = {w: ids[f"<|{w}|>"] for w in ("transcribe", "translate") if languages}
    several = {"lang_to_id": {w: i for w, i in ids.items() if len(w) == 6}, "task_to_id": tasks} if languages else {}
    model.generation_config = GenerationConfig(
        **common, is_multilingual=languages, no_timestamps_token_id=ids["<|notimestamps|>"], max_length=40, **several
    )
    model.save_pretrained(folder)
    extractor = WhisperFeatureExtractor(feature_size=8, chunk_length=2)
    WhisperProcessor(extractor, tokenizer).save_pretrained(folder)
    return folder


def write_wav2vec2(folder: Path) -> Path:
    """A model that spells; its body serves a classifier too."""
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
    )

    folder.mkdir(exist_ok=True)
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz"]
    (folder / "vocab.json").write_text(json.dumps({c: i for i, c in enumerate(letters)}))
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    torch.manual_seed(0)
    model = Wav2Vec2ForCTC(Wav2Vec2Config(
        **_SIZES, vocab_size=len(letters), conv_dim=(8, 8, 8), conv_kernel=(10, 8, 4), conv_stride=(5, 8, 8),
        num_feat_extract_layers=3, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, pad_token_id=0,
        feat_extract_norm="layer", do_stable_layer_norm=True, mask_time_prob=0.0, layerdrop=0.0, hidden_dropout=0.0,
        attention_dropout=0.0, activation_dropout=0.0, feat_proj_dropout=0.0, final_dropout=0.0,
        classifier_proj_size=16, ctc_loss_reduction="mean",
    ))  # fmt: skip
    model.save_pretrained(folder)
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(return_attention_mask=True), tokenizer).save_pretrained(folder)
    return folder


def write_ast(folder: Path) -> Path:
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    torch.manual_seed(0)
    config = ASTConfig(**_SIZES, max_length=48, num_mel_bins=32, patch_size=16, frequency_stride=16, time_stride=16)
    ASTForAudioClassification(config).save_pretrained(folder)
    ASTFeatureExtractor(max_length=48, num_mel_bins=32).save_pretrained(folder)
    return folder


CLASSIFIERS = {"wav2vec2": write_wav2vec2, "ast": write_ast, "whisper": write_whisper}
