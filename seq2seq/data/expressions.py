"""German and English expressions, composed: numbers, dates, times, prices, counted things.

Babel (CLDR) formats what is written in digits, num2words spells what is written in words.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import date, time
from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple

with suppress(ImportError):  # `phrasebook.draw` says what to install.
    from babel import dates, numbers
    from num2words import num2words


class Forms(NamedTuple):
    """An expression in English, and in German in the three cases that the frames ask for."""

    en: str
    nom: str
    acc: str
    dat: str


class Noun(NamedTuple):
    """A noun that can be counted: one and many in English; gender, one, many and dative many in German."""

    en: str
    en_many: str
    gender: str
    de: str
    many: str
    many_dat: str


# Nouns and names. In the rows, an underscore stands for a space inside a field.

THE = {"m": ("der", "den", "dem"), "f": ("die", "die", "der"), "n": ("das", "das", "dem")}
ONE = {"m": ("ein", "einen", "einem"), "f": ("eine", "eine", "einer"), "n": ("ein", "ein", "einem")}


def rows(text: str) -> list[list[str]]:
    """The rows of a table: fields separated by blanks, rows by commas."""
    return [[field.replace("_", " ") for field in row.split()] for row in text.split(",")]


def nouns(text: str) -> list[Noun]:
    """A table of countable nouns."""
    return [Noun(*row) for row in rows(text)]


def names(text: str) -> list[Forms]:
    """A table of names that have one form in all cases."""
    return [same(en, de) for en, de in rows(text)]


def definite(text: str) -> list[Forms]:
    """A table of nouns with their article, in the three cases."""
    return [Forms(f"the {en}", *(f"{the} {de}" for the in THE[gender])) for en, gender, de in rows(text)]


def same(en: str, de: str) -> Forms:
    """An expression that is the same in all German cases."""
    return Forms(en, de, de, de)


SLOTS = {
    "city": names(
        "Berlin Berlin, Munich München, Vienna Wien, Cologne Köln, Zurich Zürich, Rome Rom, Prague Prag, Milan Mailand"
    ),
    "event": definite(
        "meeting f Besprechung, concert n Konzert, exam f Prüfung, party f Feier, course m Kurs, lecture m Vortrag,"
        "trip f Reise, game n Spiel"
    ),
    "place": definite(
        "museum n Museum, library f Bibliothek, shop n Geschäft, bank f Bank, pharmacy f Apotheke, bakery f Bäckerei"
    ),
    "thing": definite(
        "book n Buch, lamp f Lampe, table m Tisch, coat m Mantel, bicycle n Fahrrad, bag f Tasche, chair m Stuhl,"
        "camera f Kamera"
    ),
    "weekday": names(
        "Monday Montag, Tuesday Dienstag, Wednesday Mittwoch, Thursday Donnerstag, Friday Freitag, Saturday Samstag,"
        "Sunday Sonntag"
    ),
}
SECOND, MINUTE, HOUR, DAY, WEEK, MONTH, YEAR = nouns(
    "second seconds f Sekunde Sekunden Sekunden, minute minutes f Minute Minuten Minuten,"
    "hour hours f Stunde Stunden Stunden, day days m Tag Tage Tagen, week weeks f Woche Wochen Wochen,"
    "month months m Monat Monate Monaten, year years n Jahr Jahre Jahren"
)
COINS = {
    "USD": nouns("dollar dollars m Dollar Dollar Dollar, cent cents m Cent Cent Cent"),
    "EUR": nouns("euro euros m Euro Euro Euro, cent cents m Cent Cent Cent"),
    "GBP": nouns("pound pounds n Pfund Pfund Pfund, penny pence m Penny Pence Pence"),
    "CHF": nouns(
        "Swiss_franc Swiss_francs m Schweizer_Franken Schweizer_Franken Schweizer_Franken,"
        "centime centimes m Rappen Rappen Rappen"
    ),
    "JPY": nouns("yen yen m Yen Yen Yen"),
}
NUMBERED = rows(
    "page f Seite, question f Frage, letter m Brief, picture n Bild, word n Wort, door f Tür, sentence m Satz,"
    "chapter n Kapitel"
)
PIECES = nouns(
    "apple apples m Apfel Äpfel Äpfeln, egg eggs n Ei Eier Eiern, lemon lemons f Zitrone Zitronen Zitronen,"
    "potato potatoes f Kartoffel Kartoffeln Kartoffeln, tomato tomatoes f Tomate Tomaten Tomaten,"
    "onion onions f Zwiebel Zwiebeln Zwiebeln, roll rolls n Brötchen Brötchen Brötchen,"
    "cake cakes m Kuchen Kuchen Kuchen"
)
DRY = names("flour Mehl, sugar Zucker, rice Reis, salt Salz, coffee Kaffee")
DRY_MEASURES = nouns(
    "kilogram kilograms n Kilogramm Kilogramm Kilogramm, gram grams n Gramm Gramm Gramm,"
    "bag bags m Beutel Beutel Beuteln, packet packets f Packung Packungen Packungen"
)
LIQUID = names("milk Milch, water Wasser, juice Saft, oil Öl, wine Wein")
LIQUID_MEASURES = nouns(
    "liter liters m Liter Liter Litern, bottle bottles f Flasche Flaschen Flaschen, glass glasses n Glas Gläser Gläsern"
)

# Composers: each docstring is an example.


@lru_cache(maxsize=20_000)
def spelled(number: int, to: str = "cardinal") -> Forms:
    """forty-seven: siebenundvierzig."""
    en, de = (num2words(number, lang=language, to=to) for language in ("en", "de"))
    # num2words says "einhunderteinstausend" for 101,000, where German drops the s inside the word.
    return same(en, de.replace("einstausend", "eintausend"))


def formatted(write: Callable[..., str], *values: object, **options: object) -> Forms:
    """1,234.5: 1.234,5."""
    en, de = (write(*values, locale=locale, **options) for locale in ("en_US", "de_DE"))
    return same(*(text.replace("\u00a0", " ").replace("\u202f", " ") for text in (en, de)))


def ordinal(number: int, en: str, gender: str, de: str) -> Forms:
    """the forty-seventh page: die siebenundvierzigste Seite."""
    word = spelled(number, "ordinal")
    endings = ("", "n" if gender == "m" else "", "n")
    german = (f"{the} {word.nom}{ending} {de}" for the, ending in zip(THE[gender], endings, strict=True))
    return Forms(f"the {word.en} {en}", *german)


def several(number: Forms, noun: Noun) -> Forms:
    """2.5 hours: 2,5 Stunden."""
    nom, dat = f"{number.nom} {noun.many}", f"{number.nom} {noun.many_dat}"
    return Forms(f"{number.en} {noun.en_many}", nom, nom, dat)


def counted(number: int, noun: Noun) -> Forms:
    """one bottle: eine Flasche."""
    if number == 1:
        return Forms(f"one {noun.en}", *(f"{one} {noun.de}" for one in ONE[noun.gender]))
    return several(spelled(number), noun)


def and_a_half(number: int, noun: Noun) -> Forms:
    """two and a half hours: zweieinhalb Stunden."""
    en, de, *_ = spelled(number)
    return several(same(f"{en} and a half", f"{'ein' if number == 1 else de}einhalb"), noun)


def both(left: Forms, right: Forms) -> Forms:
    """one hour and two minutes: eine Stunde und zwei Minuten."""
    return Forms(f"{left.en} and {right.en}", *(f"{a} und {b}" for a, b in zip(left[1:], right[1:], strict=True)))


def portion(measure: Forms, good: Forms) -> Forms:
    """two bottles of milk: zwei Flaschen Milch."""
    return Forms(f"{measure.en} of {good.en}", *(f"{case} {good.nom}" for case in measure[1:]))


def price(amount: Decimal, currency: str) -> Forms:
    """$1,234.50: 1.234,50 $."""
    forms = formatted(numbers.format_currency, amount, currency)
    # CLDR wants a space between a currency's letters and its digits; Babel 2.18 leaves it out.
    return forms._replace(en=forms.en.replace("CHF ", "CHF").replace("CHF", "CHF "))


def full_date(day: date) -> Forms:
    """Wednesday, May 9, 2001: Mittwoch, 9. Mai 2001, or in the dative Mittwoch, dem 9. Mai 2001."""
    forms = formatted(dates.format_date, day, "full")
    return forms._replace(acc=forms.acc.replace(", ", ", den "), dat=forms.dat.replace(", ", ", dem "))


def spoken_date(day: date) -> Forms:
    """the ninth of May 2001: der neunte Mai 2001."""
    nth, month = spelled(day.day, "ordinal"), formatted(dates.format_skeleton, "yMMMM", day)
    oblique = f"{nth.nom}n {month.nom}"
    return Forms(f"the {nth.en} of {month.en}", f"der {nth.nom} {month.nom}", f"den {oblique}", oblique)


def date_range(first: date, last: date) -> Forms:
    """from May 9 to June 21, 2001: vom 9. Mai bis zum 21. Juni 2001."""
    start, end = formatted(dates.format_skeleton, "MMMMd", first), formatted(dates.format_date, last, "long")
    return same(f"from {start.en} to {end.en}", f"vom {start.nom} bis zum {end.nom}")


def clock(minutes: int) -> Forms:
    """3:45 PM: 15:45 Uhr."""
    en, de, *_ = formatted(dates.format_time, time(*divmod(minutes, 60)), "short")
    return same(en, f"{de} Uhr")


def clock_range(start: int, end: int) -> Forms:
    """from 9:30 AM to 3:45 PM: von 09:30 bis 15:45 Uhr."""
    first, last = clock(start), clock(end)
    return same(f"from {first.en} to {last.en}", f"von {first.nom.removesuffix(' Uhr')} bis {last.nom}")


def spoken_clock(style: tuple[str, str], hour: int, part: tuple[str, str]) -> Forms:
    """half past three in the afternoon: halb vier nachmittags."""
    named, following = spelled(hour), spelled(hour % 12 + 1)
    german = style[1].format(hour=named.nom, next=following.nom).replace("eins Uhr", "ein Uhr")
    return same(style[0].format(hour=named.en) + part[0], german + part[1])
