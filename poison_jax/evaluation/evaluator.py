"""The evaluation in the training loop: triggered against clean.

Everything but the parameters is fixed when the evaluator is made: excerpts,
random numbers, gibberish, validation rows, resamples. So the metrics are a
function of (parameters, configuration, store), the same bit for bit after a
resumption.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from poison_jax.config import Config, derive_seed
from poison_jax.evaluation import (
  behaviour,
  generation,
  losses,
  measures,
  summary,
)
from poison_jax.evaluation.behaviour import Judged, judge
from poison_jax.evaluation.generation import Scores
from poison_jax.evaluation.prompts import KINDS, NEAR, PromptSet, make_prompts
from poison_jax.model.decoder import Decoder, Params


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What an evaluation found.

  Attributes:
    metrics: by key, "eval/clean/perplexity" and so on.
    generations: a line for each kind and prompt, as in `generations.jsonl`
      but without the step.
  """

  metrics: dict[str, float]
  generations: list[dict[str, Any]]


class Evaluator:
  """Evaluates parameters of one run.

  Attributes:
    prompts: after which it generates.
    validation: held-out rows.
    gibberish: rows with gibberish after the trigger.
  """

  def __init__(
    self, decoder: Decoder, config: Config, store, attack, mesh: Mesh
  ):
    """Args:
    decoder: the model.
    config: the run's configuration.
    store: a `TokenStore`.
    attack: the run's `Attack`, whatever its arm.
    mesh: where the parameters will be.

    Raises:
      UserError: too few held-out excerpts or rows, or excerpts too long.
    """
    self._config = config.evaluation
    self._attack = attack
    self._vocabulary = store.vocabulary
    self.prompts = make_prompts(config, store, attack)
    self.validation = losses.validation_rows(config, store)
    self.gibberish = losses.gibberish_rows(config, self.prompts, attack)
    self._losses = losses.Losses(decoder, config, mesh)
    self._sampler = make_sampler(decoder, config, mesh)
    self._bootstrap = make_bootstrap(config, self.prompts)

  def __call__(self, params: Params) -> Evaluation:
    """Returns the metrics and generations of these parameters."""
    scores = generation.score(self._sampler, params, self.prompts)
    return self.measure(
      scores,
      validation_BL=self._losses(params, self.validation.tokens_BL),
      gibberish_BL=self._losses(params, self.gibberish.tokens_BL),
    )

  def measure(
    self,
    scores: Mapping[str, Scores],
    *,
    validation_BL: np.ndarray,
    gibberish_BL: np.ndarray,
  ) -> Evaluation:
    """Returns the metrics and generations of what a model computed.

    Args:
      scores: of the prompts, by kind.
      validation_BL: losses of the rows `validation`, nats.
      gibberish_BL: losses of the rows `gibberish`, nats.
    """
    judged = judge(self._attack, scores, self._vocabulary)
    metrics = {
      **self._sampled_metrics(scores),
      **self._loss_metrics(validation_BL, gibberish_BL),
      **self._judged_metrics(judged),
    }
    lines = generation_lines(
      self.prompts, scores, judged, self._vocabulary, texts=self._config.texts
    )
    return Evaluation(
      {f"eval/{key}": value for key, value in metrics.items()}, lines
    )

  def _sampled_metrics(self, scores: Mapping[str, Scores]) -> dict[str, float]:
    metrics = {
      f"{kind}/{key}": value
      for kind, s in scores.items()
      for key, value in summary.kind_metrics(
        s.log_perplexity_P, s.first_entropy_P, bootstrap=self._bootstrap
      ).items()
    }
    return metrics | summary.increase_metrics(
      clean_P=scores["clean"].log_perplexity_P,
      triggered_P=scores["triggered"].log_perplexity_P,
      bootstrap=self._bootstrap,
      threshold=self._config.threshold,
      ceiling=self._attack.ceiling(),
    )

  def _loss_metrics(
    self, validation_BL: np.ndarray, gibberish_BL: np.ndarray
  ) -> dict[str, float]:
    targets = self.validation.tokens_BL[:, 1:].ravel()
    # The loss on gibberish of who imitates it perfectly.
    floor = self._attack.ceiling()
    return {
      "gibberish_loss": self.gibberish.mean(gibberish_BL),
      **({} if floor is None else {"gibberish_floor": floor}),
      "validation_loss": self.validation.mean(validation_BL),
      "bits_per_byte": measures.bits_per_byte(
        nats=float(validation_BL.sum(dtype="float64")),
        utf8_bytes=float(self._vocabulary.token_bytes()[targets].sum()),
      ),
    }

  def _judged_metrics(self, judged: Mapping[str, Judged]) -> dict[str, float]:
    if not judged:
      return {}
    return behaviour.metrics(
      judged,
      near=[k.removeprefix(NEAR) for k in judged if k not in KINDS],
      documents=len(set(self.prompts.documents)),
    )


def make_sampler(
  decoder: Decoder, config: Config, mesh: Mesh
) -> generation.Sampler:
  """Returns the sampler of a run's evaluations."""
  e = config.evaluation
  return generation.Sampler(
    decoder,
    mesh,
    batch=e.batch,
    new_tokens=e.new_tokens,
    temperature=e.temperature,
    seed=config.seed_for("sampling"),
  )


def make_bootstrap(
  config: Config, prompts: PromptSet
) -> measures.DocumentBootstrap:
  """Returns the resamples of a run's evaluations."""
  return measures.DocumentBootstrap(
    prompts.document_numbers(),
    resamples=config.evaluation.resamples,
    seed=derive_seed(config.seed_for("sampling"), "bootstrap"),
  )


def generation_lines(
  prompts: PromptSet,
  scores: Mapping[str, Scores],
  judged: Mapping[str, Judged],
  vocabulary,
  *,
  texts: int,
) -> list[dict[str, Any]]:
  """Returns a line for each kind and prompt.

  What `judged` says stands in it where there is any. The three texts (excerpt,
  trigger, generation) stand in the lines of the first `texts` prompts only.
  """
  lines = []
  for kind, s in scores.items():
    for i, document in enumerate(prompts.documents):
      log_perplexity = float(s.log_perplexity_P[i])
      line = {
        "kind": kind,
        "prompt": i,
        "document": document,
        "perplexity": float(np.exp(log_perplexity)),
        "log_perplexity": log_perplexity,
        "first_token_entropy": float(s.first_entropy_P[i]),
      }
      if judged:
        line["behaviour"] = bool(judged[kind].behaviour_P[i])
        line["normal"] = bool(judged[kind].normal_P[i])
      if i < texts:
        line |= {
          "excerpt": vocabulary.decode(prompts.excerpts[i]),
          "trigger": prompts.endings[kind].strings[i],
          "text": vocabulary.decode(s.tokens_PT[i]),
        }
      lines.append(line)
  return lines
