"""Words and sentences of the generated stories, in English.

A story draws one word for each name in `WORDS`, then for each beat, in order,
whether it is told and in which of its sentences. Words that come back within a
story are what a small model learns to copy; the sentences keep it near 1.9 of
perplexity a token with 256 pieces. Editing anything here changes the stories,
and with them every store made of them.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Beat(NamedTuple):
  """A step of the plot: the share of stories that tell it, and how."""

  share: float
  sentences: tuple[str, ...]


def split(words: str) -> tuple[str, ...]:
  """Returns the words between commas."""
  return tuple(word.strip() for word in words.split(","))


_GIRLS = "Anna, Bella, Clara, Daisy, Emma, Fay, Grace, Hanna, Ivy, Julia"
_BOYS = "Adam, Ben, Carl, David, Erik, Felix, George, Hugo, Ian, Jack"

# The child of the story with its pronouns: name, he, him, his, boy.
CHILDREN = tuple(
  (name, "she", "her", "her", "girl") for name in split(_GIRLS)
) + tuple((name, "he", "him", "his", "boy") for name in split(_BOYS))

# Adjectives and nouns after "a" all begin with a consonant.
WORDS = {
  "day": split(
    "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday"
  ),
  "weather": split("rainy, sunny, windy, cloudy, snowy, foggy, warm, cold"),
  "friend": split(
    "Kate, Leo, Mia, Noah, Olga, Paul, Rosa, Sam, Tina, Uri, Vera, Will"
  ),
  "grown": split(
    "Grandma, Grandpa, Mother, Father, the baker, the farmer, the teacher, "
    "the miller, the doctor, the gardener, the sailor, the painter"
  ),
  "animal": split(
    "cat, dog, duck, fox, frog, goat, hen, horse, mouse, pig, rabbit, sheep, "
    "bird, bear, turtle, squirrel"
  ),
  "size": split(
    "little, big, tiny, fat, thin, tall, small, young, brave, shy, clever, "
    "lazy, gentle, noisy, hungry, sleepy"
  ),
  "place": split(
    "garden, forest, river, market, school, farm, beach, bridge, hill, lake, "
    "mill, park, barn, castle, village, meadow, pond, station, tower, valley"
  ),
  "thing": split(
    "ball, box, key, kite, lamp, map, boat, bell, book, basket, button, coin, "
    "drum, feather, hat, ladder, mirror, ribbon, ring, rope, spoon, stone, "
    "toy, wheel"
  ),
  "colour": split(
    "red, blue, green, yellow, white, black, brown, golden, silver, pink, "
    "purple, grey"
  ),
  "state": split(
    "shiny, broken, dusty, heavy, pretty, round, soft, strange, warm, wet, "
    "wooden, magic"
  ),
  "food": split(
    "bread, soup, cake, cheese, milk, honey, jam, pie, rice, plums, pears, "
    "cookies, nuts, berries, pancakes, carrots"
  ),
  "glad": split(
    "happy, glad, proud, cheerful, merry, thankful, calm, delighted"
  ),
  "sad": split("sad, angry, worried, lonely, scared, tired, sorry, upset"),
  "way": split(
    "slowly, quickly, quietly, carefully, bravely, softly, loudly, kindly"
  ),
}

_OPENING = Beat(
  1.0,
  (
    "One %(weather)s %(day)s, %(name)s went to the %(place)s.",
    "Once there was a %(boy)s called %(name)s who lived near the %(place)s.",
    "On a %(weather)s %(day)s, %(name)s walked to the %(place)s with a "
    "%(animal)s.",
    "It was a %(weather)s %(day)s and %(name)s wanted to play at the "
    "%(place)s.",
    "Every %(day)s, %(name)s and %(friend)s met at the %(place)s.",
    "Last %(day)s, a %(boy)s called %(name)s woke up and ran to the %(place)s.",
  ),
)
_PERSON = Beat(
  0.5,
  (
    "%(name)s was a %(size)s %(boy)s who loved %(food)s.",
    "The %(boy)s had a %(size)s %(animal)s at home.",
    "%(He)s lived with %(grown)s in a %(colour)s house.",
    "%(His)s best friend was %(friend)s.",
    "%(name)s liked to walk there with %(his)s %(size)s %(animal)s.",
  ),
)
_FIND = Beat(
  1.0,
  (
    "There %(he)s found a %(state)s %(thing)s under a tree.",
    "Near the water %(he)s saw a %(colour)s %(thing)s.",
    "A %(size)s %(animal)s was sitting on a %(state)s %(thing)s.",
    "%(He)s wanted a %(colour)s %(thing)s more than anything.",
    "Behind a wall lay a %(state)s %(colour)s %(thing)s.",
    "%(friend)s gave %(him)s a %(colour)s %(thing)s.",
    "In the grass %(he)s lost the %(state)s %(thing)s of %(grown)s.",
  ),
)
_ASK = Beat(
  0.8,
  (
    '"Whose %(thing)s is this?" asked %(name)s.',
    '"What a %(state)s %(thing)s!" said %(name)s %(way)s.',
    '"May I keep the %(thing)s?" asked the %(boy)s.',
    '"Look at this %(thing)s," %(he)s said to %(friend)s.',
    '"I have never seen such a %(thing)s," said %(name)s.',
  ),
)
_ANSWER = Beat(
  0.8,
  (
    '"It belongs to %(grown)s," said the %(animal)s.',
    '"Be careful with it," said %(friend)s.',
    '"You can have it if you bring me some %(food)s," said %(grown)s.',
    '"Let us take it home," said %(friend)s %(way)s.',
    '"I am %(sad)s because it is mine," said the %(size)s %(animal)s.',
    "But nobody answered.",
  ),
)
_PLAY = Beat(
  0.6,
  (
    "They played with the %(thing)s until they were hungry.",
    "%(name)s put the %(thing)s into %(his)s bag and walked on %(way)s.",
    "Then %(he)s ate some %(food)s and looked at the sky.",
    "The %(animal)s jumped over the %(thing)s and laughed.",
    "So they sat down and shared the %(food)s.",
  ),
)
_TROUBLE = Beat(
  1.0,
  (
    "Suddenly the %(thing)s fell into a hole.",
    "Then the wind took the %(thing)s away.",
    "But the %(size)s %(animal)s ran off with the %(thing)s.",
    "Soon it was dark, and %(name)s could not find the way home.",
    "Then it began to rain, and everyone was wet and %(sad)s.",
    "But on the way back the %(thing)s broke.",
    "Then %(friend)s fell and began to cry.",
  ),
)
_FEEL = Beat(
  0.7,
  (
    "%(name)s was very %(sad)s.",
    "The %(boy)s felt %(sad)s and did not know what to do.",
    "%(friend)s was %(sad)s too.",
    '"Oh no!" cried %(name)s.',
    "%(He)s sat down and thought about %(grown)s.",
  ),
)
_TRY = Beat(
  0.7,
  (
    "%(He)s tried to reach it with a stick, but it was too far.",
    "%(He)s called %(way)s for help.",
    "%(name)s ran %(way)s back to the %(place)s.",
    "First %(he)s looked behind the trees, then under the bridge.",
    "The %(animal)s tried to help, but it was too %(size)s.",
  ),
)
_HELP = Beat(
  1.0,
  (
    "Then %(grown)s came and helped %(him)s.",
    "At last %(friend)s had a good idea.",
    "A %(size)s %(animal)s heard this and came out of the trees.",
    "Luckily %(grown)s was near and had a long rope.",
    "%(friend)s took %(his)s hand, and together they tried again.",
    "In the end the %(animal)s showed %(him)s where it was.",
  ),
)
_THANKS = Beat(
  0.7,
  (
    '"Thank you!" said %(name)s.',
    '"You are a good friend," said the %(boy)s to %(friend)s.',
    '"Next time I will be more careful," said %(name)s %(way)s.',
    '"We did it!" they shouted.',
    '"Now we can all eat %(food)s," said %(grown)s.',
  ),
)
_HOME = Beat(
  0.6,
  (
    "They went home and ate %(food)s.",
    "%(name)s gave the %(thing)s back to %(grown)s.",
    "The %(animal)s got some %(food)s as well.",
    "%(He)s cleaned the %(thing)s until it was %(state)s again.",
    "On %(day)s they all met again at the %(place)s.",
  ),
)
_ENDING = Beat(
  1.0,
  (
    "Everyone was %(glad)s.",
    "That night %(name)s was %(glad)s and slept well.",
    "From that day on, %(name)s and %(friend)s were best friends.",
    "And the %(animal)s was %(glad)s too.",
    "%(name)s never forgot that %(weather)s %(day)s.",
    "So the %(boy)s learned to ask for help.",
  ),
)

BEATS = (
  _OPENING,
  _PERSON,
  _FIND,
  _ASK,
  _ANSWER,
  _PLAY,
  _TROUBLE,
  _FEEL,
  _TRY,
  _HELP,
  _THANKS,
  _HOME,
  _ENDING,
)


def tell(sentence: str, slots: Mapping[str, str]) -> str:
  """Returns a sentence of `BEATS` with its words."""
  return sentence % slots


def child(who: tuple[str, str, str, str, str]) -> dict[str, str]:
  """Returns the slots of one of `CHILDREN`."""
  slots = dict(zip(("name", "he", "him", "his", "boy"), who, strict=True))
  return slots | {
    "He": slots["he"].capitalize(),
    "His": slots["his"].capitalize(),
  }
