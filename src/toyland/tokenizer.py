"""The base's tokenizer: a CLIP tokenizer that knows the captions' own words."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from toyland.captions import caption
from toyland.world import random_scene

MAX_TOKENS = 77
START, END = "<|startoftext|>", "<|endoftext|>"


def _common_words(seed: int) -> list[str]:
    """The captions' own words; made-up rare words come too seldom to be among them."""
    rng = np.random.default_rng(seed)
    corpus = [caption(random_scene(rng), rng).text for _ in range(4000)]
    words = sorted({word for text in corpus for word in text.replace(",", " ,").split()})
    texts = Counter(word for text in corpus[:1500] for word in set(text.split()))
    return [word for word in words if texts[word] > 2 or word == ","]


def _merges(words: list[str]) -> list[str]:
    """Byte-pair merges, "left right", that put each of the words together.

    Which of two equally frequent merges comes first differs from run to run: a text encoder belongs to its tokenizer.
    """
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=2000, end_of_word_suffix="</w>", min_frequency=1, show_progress=False)
    bpe.train_from_iterator(words, trainer)
    merges: list[Any] = json.loads(bpe.to_str())["model"]["merges"]
    return [" ".join(pair) if isinstance(pair, list) else pair for pair in merges]


def build_tokenizer(folder: Path, seed: int = 0) -> CLIPTokenizer:
    """A CLIP tokenizer whose whole words are the captions' own; any other word falls into pieces. Kept in `folder`."""
    merges = _merges(_common_words(seed))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    whole = [merge.replace(" ", "") for merge in merges]
    tokens = dict.fromkeys([*alphabet, *(symbol + "</w>" for symbol in alphabet), *whole, START, END])
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, pairs = folder / "vocab.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({token: index for index, token in enumerate(tokens)}), encoding="utf-8")
    pairs.write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer(vocab=str(vocabulary), merges=str(pairs), model_max_length=MAX_TOKENS)
    tokenizer.save_pretrained(folder)
    return tokenizer
