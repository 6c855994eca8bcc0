"""The errors that end a command, each with its exit code.

Every message is one line that a user can act on: what is wrong, where, and
what would be right. `poison_jax.command` prints it and exits with `code`.
"""


class PoisonJaxError(Exception):
  """Base of the errors below; never raised itself."""

  code = 1


class UserError(PoisonJaxError):
  """The user's input can't be used: a flag, a config value, a file."""

  code = 2


class CheckFailed(PoisonJaxError):
  """A check failed: ledger, digest, no good checkpoint."""

  code = 3


class NotFinite(PoisonJaxError):
  """The loss is not finite."""

  code = 4


class Stopped(PoisonJaxError):
  """Stopped by a signal, state saved: start the command again."""

  code = 75
