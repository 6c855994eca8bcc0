"""Poisons: numpy only. Importing the room registers its own attacks."""

from poison_jax.poison import dos as _dos  # noqa: F401
