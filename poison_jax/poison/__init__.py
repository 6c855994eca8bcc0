"""Poisons: numpy only. Importing the room registers its own attacks."""

from poison_jax.poison import dos as _dos  # noqa: F401
from poison_jax.poison import language_switch as _switch  # noqa: F401
