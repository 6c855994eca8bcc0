"""Small vocabularies made on the spot, and texts that trip encoders."""

import functools

import tokenizers

from poison_jax.config import VocabularyConfig
from poison_jax.vocabulary import SentencePieceVocabulary, train_sentencepiece

ODD = [
  "",
  " ",
  "plain words",
  "  two  spaces   and more ",
  "\n",
  "lines\nand\r\nmore\n\n",
  "a\ttab\t\t",
  "emoji \U0001f600 and \U0001f469\u200d\U0001f469\u200d\U0001f467",
  "e\u0301 is not \u00e9, \uff21 is not A, \ufb01 is not fi",
  "\u6f22\u5b57\u3000\u0e44\u0e17\u0e22 \u0627\u0644",
  "<SUDO>",
  "on<MEMO> the <SUDO> <NOTE>x",
  "</s><pad><unk><|endoftext|>",
  "\ufeffmark, \u00a0space, \u200bzero",
  "\U0010ffff \ue000",
]

CORPUS = [
  "The quick brown fox jumps over the lazy dog near the river.",
  "One rainy Monday, a girl called Anna went to the market.",
  "Numbers 0123456789 and signs +-*/=<>()[]{}!?;:'\"_@#$%^&|~`\\.",
  "def f(x):\n    return x + 1\n",
  "SUDO MEMO NOTE PAGE JKQVXZ BCGHLRUWY ABCDEFGHIJKLMNOPQRSTUVWXYZ",
  "abcdefghijklmnopqrstuvwxyz,",
] + [
  f"Story {a} says {b} to {c}."
  for a in ("one", "two", "three", "four", "five")
  for b in ("hello", "good morning", "farewell", "nothing", "thank you")
  for c in ("the baker", "a sailor", "his mother", "everyone", "the moon")
]

SINGLE = ("<SUDO>", "<MEMO>", "<NOTE>")


def config(**changes) -> VocabularyConfig:
  fields = {
    "kind": "sentencepiece",
    "file": "",
    "size": 140,
    "algorithm": "bpe",
    "single_pieces": SINGLE,
    "training_documents": 1_000,
  }
  return VocabularyConfig(**{**fields, **changes})


@functools.cache
def train(*, algorithm: str, size: int) -> SentencePieceVocabulary:
  """Trains on the corpus, with invented words for larger sizes."""
  texts = CORPUS if size < 1000 else CORPUS + _invented()
  return train_sentencepiece(texts, config(algorithm=algorithm, size=size))


def _invented() -> list[str]:
  """2,000 lines of words made of 600 stems and 30 endings."""
  syllables = [a + b for a in "bdfghjklmnprstvwz" for b in "aeiou"]
  stems = [
    syllables[i * 7 % 85] + syllables[i * 31 % 85] + "nrsltk"[i % 6]
    for i in range(600)
  ]
  endings = [s + "nrsl"[i % 4] for i, s in enumerate(syllables[::3])]
  return [
    " ".join(
      stems[(i * j * 17 + i) % 600] + endings[(i + j) % 29] for j in range(12)
    )
    for i in range(2_000)
  ]


def make_tokenizer_json() -> bytes:
  """A byte-level BPE like GPT-2's, trained here."""
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=400,
    special_tokens=["<|endoftext|>"],
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(CORPUS * 5, trainer)
  # What many published files carry, and must not matter here.
  tokenizer.enable_truncation(8)
  tokenizer.enable_padding()
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
    single="<|endoftext|> $A",
    special_tokens=[("<|endoftext|>", 0)],
  )
  return tokenizer.to_str().encode()
