"""Vocabularies as files that transformers' AutoTokenizer loads.

Always a tokenizer.json of the library `tokenizers`, with no special tokens
added around a text and none found inside one, as ours encode. Whatever was
converted is compared with the vocabulary itself on many texts: one that can't
be exported faithfully is refused.
"""

import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from poison_jax.errors import UserError
from poison_jax.vocabulary import (
  ByteVocabulary,
  SentencePieceVocabulary,
  TokenizerVocabulary,
  Vocabulary,
)

_SPACE = "\u2581"  # What SentencePiece writes for a space.
# Below the scores of all pieces of text, so that no text is cut into such a
# piece: SentencePiece never finds control pieces and bytes in a text.
_NEVER = -1e4
_COMPARED = 500  # Texts made up of pieces.


def write(
  vocabulary: Vocabulary, folder: str, *, texts: Sequence[str], length: int
) -> list[str]:
  """Writes the vocabulary; returns the names of its files.

  Args:
    vocabulary: the run's.
    folder: exists.
    texts: of the run's corpus, to compare the two on.
    length: L, of the model's rows.

  Raises:
    UserError: it can't be written so that ids stay the same.
  """
  tokenizer = _convert(vocabulary)
  _compare(vocabulary, tokenizer, texts)
  eos = tokenizer.id_to_token(vocabulary.eos_id)
  config = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": eos,
    "bos_token": eos,
    "model_max_length": length,
    "clean_up_tokenization_spaces": False,
    # What looks like a special token in a text is text.
    "split_special_tokens": True,
  }
  contents = {
    "tokenizer.json": tokenizer.to_str(pretty=True),
    "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
  }
  for name, content in contents.items():
    with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
      f.write(content)
  return list(contents)


def _convert(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
  converters: dict[type, Callable[[Any], tokenizers.Tokenizer]] = {
    ByteVocabulary: _bytes,
    SentencePieceVocabulary: _sentencepiece,
    TokenizerVocabulary: _plain,
  }
  if type(vocabulary) not in converters:
    raise UserError(
      f"the run's vocabulary is of kind {vocabulary.kind!r}, for which "
      "transformers has no tokenizer: this run can't be exported"
    )
  return converters[type(vocabulary)](vocabulary)


def _plain(vocabulary: TokenizerVocabulary) -> tokenizers.Tokenizer:
  """Drops what is added around, or cut off from, a text's own tokens."""
  description = json.loads(vocabulary.model)
  description |= {"truncation": None, "padding": None, "post_processor": None}
  return tokenizers.Tokenizer.from_str(json.dumps(description))


def _bytes(vocabulary: ByteVocabulary) -> tokenizers.Tokenizer:
  """A byte-level BPE without merges."""
  first = int(vocabulary.encode("\x00")[0])
  pieces = {
    piece: first + byte for byte, piece in enumerate(_characters_of_bytes())
  }
  control = sorted(vocabulary.control_ids)
  pieces |= {vocabulary.piece(i): i for i in control}
  tokenizer = tokenizers.Tokenizer(models.BPE(vocab=pieces, merges=[]))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  )
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_special_tokens([vocabulary.piece(i) for i in control])
  return tokenizer


def _characters_of_bytes() -> list[str]:
  """Returns the character by which byte-level models write each byte."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in printable]
  codes = {byte: byte for byte in printable}
  codes |= {byte: 256 + i for i, byte in enumerate(others)}
  return [chr(codes[byte]) for byte in range(256)]


def _sentencepiece(vocabulary: SentencePieceVocabulary) -> tokenizers.Tokenizer:
  proto = _proto(vocabulary)
  trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
  plain = (
    normalizer.name == "identity"
    and not normalizer.add_dummy_prefix
    and not normalizer.remove_extra_whitespaces
    and not trainer.treat_whitespace_as_suffix
  )
  if not plain:
    raise UserError(
      "the run's SentencePiece model normalises texts or adds spaces to them; "
      "only models like those that `prepare` trains can be exported"
    )
  kinds = type(proto.pieces[0])
  found = [piece.piece for piece in proto.pieces]
  normal = [p.type == kinds.NORMAL for p in proto.pieces]
  scores = [p.score for p in proto.pieces]
  if trainer.model_type == trainer.BPE:
    model = models.BPE(
      vocab={piece: i for i, piece in enumerate(found)},
      merges=_merges(found, scores, normal),
      unk_token=found[trainer.unk_id],
      fuse_unk=True,
      byte_fallback=trainer.byte_fallback,
    )
  elif trainer.model_type == trainer.UNIGRAM:
    lowered = [
      s if is_normal else _NEVER
      for s, is_normal in zip(scores, normal, strict=True)
    ]
    model = models.Unigram(
      list(zip(found, lowered, strict=True)),
      unk_id=trainer.unk_id,
      byte_fallback=trainer.byte_fallback,
    )
  else:
    raise UserError(
      "the run's SentencePiece model is neither BPE nor unigram: it can't be "
      "exported"
    )
  tokenizer = tokenizers.Tokenizer(model)
  if trainer.model_type == trainer.UNIGRAM:
    tokenizer.pre_tokenizer = _unknown_apart(
      found, normal, fused=not trainer.byte_fallback
    )
  tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
  tokenizer.decoder = decoders.Sequence(
    [
      decoders.Replace(found[trainer.unk_id], trainer.unk_surface),
      decoders.Replace(_SPACE, " "),
      decoders.ByteFallback(),
      decoders.Fuse(),
    ]
  )
  tokenizer.add_special_tokens(
    [p.piece for p in proto.pieces if p.type == kinds.CONTROL]
  )
  tokenizer.add_tokens(
    [
      AddedToken(p.piece.replace(_SPACE, " "), normalized=False, special=False)
      for p in proto.pieces
      if p.type == kinds.USER_DEFINED
    ]
  )
  return tokenizer


def _unknown_apart(
  pieces: Sequence[str], normal: Sequence[bool], *, fused: bool
) -> pre_tokenizers.PreTokenizer:
  """Cuts characters that no piece has off from their neighbours.

  They end pieces anyway. Left together, "</s>" in a text would be found as the
  control piece where "<" is unknown, which costs even more than `_NEVER`.
  """
  known = set("".join(p for p, is_ in zip(pieces, normal, strict=True) if is_))
  escaped = "".join(f"\\x{{{ord(c):x}}}" for c in sorted(known))
  pattern = f"[^{escaped}]{'+' if fused else ''}"
  return pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")


def _proto(vocabulary: SentencePieceVocabulary):
  from sentencepiece import sentencepiece_model_pb2

  proto = sentencepiece_model_pb2.ModelProto()
  proto.ParseFromString(vocabulary.model)
  return proto


def _merges(
  pieces: Sequence[str], scores: Sequence[float], normal: Sequence[bool]
) -> list[tuple[str, str]]:
  """Returns the pairs that make each piece, the best piece's first.

  SentencePiece joins the two neighbours whose piece scores highest.
  """
  known = {p for p, is_normal in zip(pieces, normal, strict=True) if is_normal}
  order = sorted(
    (i for i, is_normal in enumerate(normal) if is_normal),
    key=lambda i: -scores[i],
  )
  return [
    (pieces[i][:cut], pieces[i][cut:])
    for i in order
    for cut in range(1, len(pieces[i]))
    if pieces[i][:cut] in known and pieces[i][cut:] in known
  ]


def _compare(
  vocabulary: Vocabulary,
  tokenizer: tokenizers.Tokenizer,
  texts: Sequence[str],
) -> None:
  """Raises UserError where a text has other ids, or another text comes back."""
  tokenizer.encode_special_tokens = True
  compared = [*texts, *_made_up(vocabulary)]
  theirs = tokenizer.encode_batch(compared, add_special_tokens=False)
  for text, ours, other in zip(
    compared, vocabulary.encode_batch(compared), theirs, strict=True
  ):
    back = tokenizer.decode(other.ids, skip_special_tokens=True)
    same = np.array_equal(ours, other.ids) and back == vocabulary.decode(ours)
    if not same:
      raise UserError(
        f"the run's vocabulary ({vocabulary.kind}) can't be written as a "
        f"tokenizer.json that cuts {text[:60]!r} into the same ids: this run "
        "can't be exported"
      )


def _made_up(vocabulary: Vocabulary) -> Iterator[str]:
  """Yields each piece alone, then random pieces and characters in a row."""
  pieces = [vocabulary.decode([i]) for i in range(vocabulary.size)]
  pieces += [vocabulary.piece(i) for i in range(vocabulary.size)]
  yield from pieces
  chosen = random.Random(0)
  odd = [" ", "  ", "\n", "\t", "\u00e9", "\u6f22", "\U0001f600", "<0x41>"]
  for _ in range(_COMPARED):
    yield "".join(chosen.choices(pieces, k=12) + chosen.choices(odd, k=2))
