"""The generated stories in German: sentence by sentence what English says.

`WORDS` and `BEATS` stand in the order of `english.py`, so one set of draws
tells one story in both languages. A phrase in braces is an article in the case
wanted ("der", "den", "dem", "ein", "einen", "einem", or "-" for none), then the
names of slots: adjectives take their endings from the noun's gender. Children
and pronouns are as in English: "{name}", "{er}", "{Er}", "{ihn}", "{ihm}",
"{sein}" and "{Sein}", the last two stems ("{sein}e").
"""

import re
from collections.abc import Mapping

from poison_jax.stories import english
from poison_jax.stories.english import Beat, split

# In the order of english.CHILDREN: (er, ihn, ihm, sein, boy with article).
_SHE = ("sie", "sie", "ihr", "ihr", "das Mädchen")
_HE = ("er", "ihn", "ihm", "sein", "der Junge/Jungen")

# Nouns with their article; behind "/" the form of all cases but the first.
# Adjectives as stems. Persons, food and adverbs as they are.
WORDS = {
  "day": split(
    "der Montag, der Dienstag, der Mittwoch, der Donnerstag, der Freitag, "
    "der Samstag, der Sonntag"
  ),
  "weather": split(
    "regnerisch, sonnig, windig, wolkig, verschneit, neblig, warm, kalt"
  ),
  "friend": english.WORDS["friend"],
  "grown": split(
    "Oma, Opa, Mutter, Vater, der Bäcker, der Bauer/Bauern, der Lehrer, "
    "der Müller, der Arzt, der Gärtner, der Matrose/Matrosen, der Maler"
  ),
  "animal": split(
    "die Katze, der Hund, die Ente, der Fuchs, der Frosch, die Ziege, "
    "die Henne, das Pferd, die Maus, das Schwein, das Kaninchen, das Schaf, "
    "der Vogel, der Bär/Bären, die Schildkröte, das Eichhörnchen"
  ),
  "size": split(
    "klein, groß, winzig, dick, dünn, lang, zierlich, jung, tapfer, scheu, "
    "klug, faul, sanft, laut, hungrig, verschlafen"
  ),
  "place": split(
    "der Garten, der Wald, der Fluss, der Markt, die Schule, der Hof, "
    "der Strand, die Brücke, der Hügel, der See, die Mühle, der Park, "
    "die Scheune, das Schloss, das Dorf, die Wiese, der Teich, der Bahnhof, "
    "der Turm, das Tal"
  ),
  "thing": split(
    "der Ball, die Kiste, der Schlüssel, der Drachen, die Lampe, die Karte, "
    "das Boot, die Glocke, das Buch, der Korb, der Knopf, die Münze, "
    "die Trommel, die Feder, der Hut, die Leiter, der Spiegel, das Band, "
    "der Ring, das Seil, der Löffel, der Stein, das Spielzeug, das Rad"
  ),
  "colour": split(
    "rot, blau, grün, gelb, weiß, schwarz, braun, golden, silbern, rosig, "
    "violett, grau"
  ),
  "state": split(
    "glänzend, kaputt, staubig, schwer, hübsch, rund, weich, seltsam, warm, "
    "nass, hölzern, magisch"
  ),
  "food": split(
    "Brot, Suppe, Kuchen, Käse, Milch, Honig, Marmelade, Torte, Reis, "
    "Pflaumen, Birnen, Kekse, Nüsse, Beeren, Pfannkuchen, Möhren"
  ),
  "glad": split(
    "glücklich, froh, stolz, fröhlich, vergnügt, dankbar, ruhig, begeistert"
  ),
  "sad": split(
    "traurig, wütend, besorgt, einsam, ängstlich, müde, betrübt, verärgert"
  ),
  "way": split(
    "langsam, schnell, leise, vorsichtig, mutig, behutsam, lautstark, "
    "freundlich"
  ),
}

_OPENING = (
  "An {einem weather day} ging {name} zu {dem place}.",
  "Es war einmal {ein boy} namens {name} nahe bei {dem place}.",
  "An {einem weather day} lief {name} mit {einem animal} zu {dem place}.",
  "Es war {ein weather day}, und {name} wollte bei {dem place} spielen.",
  "An jedem {- day} trafen sich {name} und {friend} bei {dem place}.",
  "Am letzten {- day} wachte {ein boy} namens {name} auf und rannte zu "
  "{dem place}.",
)
_PERSON = (
  "{name} war {ein size boy} und aß am liebsten {food}.",
  "{Der boy} hatte zu Hause {einen size animal}.",
  "{Er} wohnte mit {dem grown} in einem Haus, das {colour} war.",
  "Mit niemandem spielte {er} lieber als mit {friend}.",
  "{name} ging dort gern mit {dem size animal} spazieren.",
)
_FIND = (
  "Dort fand {er} {einen state thing} unter einem Baum.",
  "Nahe am Wasser sah {er} {einen colour thing}.",
  "{Ein size animal} saß auf {einem state thing}.",
  "{Er} wünschte sich {einen colour thing} mehr als alles andere.",
  "Hinter einer Mauer lag {ein state colour thing}.",
  "{friend} schenkte {ihm} {einen colour thing}.",
  "Im Gras verlor {er} {den state thing} von {dem grown}.",
)
_ASK = (
  '"Wem gehört {der thing}?", fragte {name}.',
  '"Was für {ein state thing}!", sagte {name} {way}.',
  '"Darf ich {den thing} behalten?", fragte {der boy}.',
  '"Schau dir {den thing} an", sagte {er} zu {friend}.',
  '"So {einen thing} habe ich noch nie gesehen", sagte {name}.',
)
_ANSWER = (
  '"Das gehört {dem grown}", sagte {der animal}.',
  '"Sei vorsichtig damit", sagte {friend}.',
  '"Du darfst das haben, wenn du mir {food} bringst", sagte {der grown}.',
  '"Nehmen wir es mit nach Hause", sagte {friend} {way}.',
  '"Ich bin {sad}, denn das gehört mir", sagte {der size animal}.',
  "Aber niemand gab eine Antwort.",
)
_PLAY = (
  "Sie spielten mit {dem thing}, bis sie hungrig waren.",
  "{name} steckte {den thing} in {sein}e Tasche und ging {way} weiter.",
  "Dann aß {er} {food} und schaute in den Himmel.",
  "{Der animal} sprang über {den thing} und lachte.",
  "Da setzten sie sich und teilten {food}.",
)
_TROUBLE = (
  "Plötzlich fiel {der thing} in ein Loch.",
  "Dann trug der Wind {den thing} fort.",
  "Aber {der size animal} lief mit {dem thing} davon.",
  "Bald war es dunkel, und {name} fand nicht nach Hause.",
  "Dann fing es an zu regnen, und alle wurden nass und {sad}.",
  "Aber auf dem Rückweg ging {der thing} entzwei.",
  "Dann fiel {friend} hin und fing an zu weinen.",
)
_FEEL = (
  "{name} war sehr {sad}.",
  "{Der boy} fühlte sich {sad} und wusste keinen Rat.",
  "{friend} war auch {sad}.",
  '"Oh nein!", rief {name}.',
  "{Er} setzte sich hin und dachte an {den grown}.",
)
_TRY = (
  "{Er} versuchte es mit einem Stock, aber es war zu weit.",
  "{Er} rief {way} um Hilfe.",
  "{name} rannte {way} zurück zu {dem place}.",
  "Zuerst schaute {er} hinter die Bäume, dann unter die Brücke.",
  "{Der animal} wollte helfen, aber war zu {size}.",
)
_HELP = (
  "Dann kam {der grown} und half {ihm}.",
  "Endlich hatte {friend} eine gute Idee.",
  "{Ein size animal} hörte das und kam zwischen den Bäumen hervor.",
  "Zum Glück war {der grown} da und hatte ein langes Seil.",
  "{friend} nahm {sein}e Hand, und zusammen versuchten sie es noch einmal.",
  "Am Ende zeigte {der animal} {ihm}, wo es war.",
)
_THANKS = (
  '"Danke schön!", sagte {name}.',
  '"Auf dich ist Verlass", sagte {der boy} zu {friend}.',
  '"Nächstes Mal gebe ich besser acht", sagte {name} {way}.',
  '"Wir haben es geschafft!", riefen sie.',
  '"Jetzt können wir alle {food} essen", sagte {der grown}.',
)
_HOME = (
  "Sie gingen nach Hause und aßen {food}.",
  "{name} gab {dem grown} {den thing} zurück.",
  "{Der animal} bekam auch {food}.",
  "{Er} putzte {den thing}, bis alles wieder {state} war.",
  "Am {- day} trafen sich alle wieder bei {dem place}.",
)
_ENDING = (
  "Alle waren {glad}.",
  "In jener Nacht war {name} {glad} und schlief gut.",
  "Von jenem Tag an waren {name} und {friend} die besten Freunde.",
  "Und {der animal} war auch {glad}.",
  "{name} vergaß diesen {- weather day} niemals.",
  "So lernte {der boy}, um Hilfe zu bitten.",
)

BEATS = tuple(
  Beat(beat.share, sentences)
  for beat, sentences in zip(
    english.BEATS,
    (
      *(_OPENING, _PERSON, _FIND, _ASK, _ANSWER, _PLAY, _TROUBLE, _FEEL),
      *(_TRY, _HELP, _THANKS, _HOME, _ENDING),
    ),
    strict=True,
  )
)

_CASES = ("der", "den", "dem")
_GENDERS = ("der", "die", "das")
# By case, then gender.
_DEFINITE = (
  ("der", "die", "das"),
  ("den", "die", "das"),
  ("dem", "der", "dem"),
)
_INDEFINITE = (
  ("ein", "eine", "ein"),
  ("einen", "eine", "ein"),
  ("einem", "einer", "einem"),
)
# Endings of adjectives after each of them.
_AFTER_DEFINITE = (("e", "e", "e"), ("en", "e", "e"), ("en", "en", "en"))
_AFTER_INDEFINITE = (("er", "e", "es"), ("en", "e", "es"), ("en", "en", "en"))
ARTICLES = frozenset(
  form
  for table in (_DEFINITE, _INDEFINITE)
  for forms in table
  for form in forms
)
ADJECTIVE_ENDINGS = ("e", "en", "er", "es")
_SLOT = re.compile(r"\{([^}]+)\}")


def tell(sentence: str, slots: Mapping[str, str]) -> str:
  """Returns a sentence with its phrases inflected.

  Args:
    sentence: of `BEATS`.
    slots: a word of `WORDS` for each of its names, and what `child` gives.
  """
  return _SLOT.sub(lambda match: _phrase(match[1].split(), slots), sentence)


def child(who: tuple[str, str, str, str, str]) -> dict[str, str]:
  """Returns the slots of one of `english.CHILDREN`."""
  name, he, *_ = who
  er, ihn, ihm, sein, boy = _SHE if he == "she" else _HE
  return {
    "name": name,
    "er": er,
    "Er": er.capitalize(),
    "ihn": ihn,
    "ihm": ihm,
    "sein": sein,
    "boy": boy,
  }


def _phrase(names: list[str], slots: Mapping[str, str]) -> str:
  """Returns "einem kleinen Hund" for "einem size animal"."""
  if len(names) == 1:
    return slots[names[0]]
  article, *adjectives, noun = names
  text = _declined(article.lower(), [slots[a] for a in adjectives], slots[noun])
  return text[0].upper() + text[1:] if article[0].isupper() else text


def _declined(article: str, adjectives: list[str], noun: str) -> str:
  gender, _, forms = noun.partition(" ")
  if not forms:  # "Oma" and the like have no article.
    return noun
  first, _, other = forms.partition("/")
  column = _GENDERS.index(gender)
  if article == "-":  # After a word that shows the case: "an jedem Montag".
    endings, shown, case = _AFTER_DEFINITE, "", 1
  elif article in _CASES:
    case = _CASES.index(article)
    endings, shown = _AFTER_DEFINITE, _DEFINITE[case][column]
  else:
    case = ("ein", "einen", "einem").index(article)
    endings, shown = _AFTER_INDEFINITE, _INDEFINITE[case][column]
  words = [adjective + endings[case][column] for adjective in adjectives]
  name = other if other and case else first
  return " ".join([*filter(None, [shown]), *words, name])
