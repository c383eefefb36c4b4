"""An endless English-German corpus that needs no network: dates, durations, numbers, prices, quantities and times.

Babel (CLDR) formats what is written in digits, num2words spells what is written in words, and the tables below set
both in phrases and short sentences. The German is a function of the English: no source has two targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import date, time, timedelta
from decimal import Decimal
from functools import lru_cache
from hashlib import blake2b
from importlib import import_module
from itertools import cycle
from random import Random
from typing import NamedTuple, TypeVar

from seq2seq.support.errors import missing_extra

with suppress(ImportError):  # `draw` says what to install.
    from babel import dates, numbers
    from num2words import num2words

KINDS = ("date", "duration", "number", "price", "quantity", "time")
HELD_OUT_SHARE = 0.05

Item = TypeVar("Item")


class Phrase(NamedTuple):
    """A source in English, its target in German, and which of `KINDS` it is."""

    source: str
    target: str
    kind: str


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


class Group(NamedTuple):
    """A way to make expressions, and the sentences that take them, English and German."""

    make: Callable[[Random], Forms]
    frames: Sequence[tuple[str, str]]


def draw(seed: int, *, held_out: bool) -> Iterator[Phrase]:
    """Draw phrases without end, one of each kind in turn; a phrase may come up again.

    Given the same `seed` and `held_out`, every process returns the same sequence. With `held_out` come only phrases
    whose source `is_held_out`, without it only the others. Raises `UserError` where Babel or num2words is missing.
    """
    for package in ("babel", "num2words"):
        try:
            import_module(package)
        except ImportError:
            raise missing_extra(package, "quickstart") from None
    rng = Random(f"phrasebook {seed} {held_out}")
    return (_phrase(kind, rng, held_out) for kind in cycle(KINDS))


def is_held_out(source: str) -> bool:
    """Return whether the phrase with this source is kept for testing, by a hash that is the same everywhere."""
    digest = blake2b(source.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < HELD_OUT_SHARE * 2**64


def _phrase(kind: str, rng: Random, held_out: bool) -> Phrase:
    while True:
        source, target = _compose(kind, rng)
        if is_held_out(source) == held_out:
            return Phrase(source, target, kind)


def _compose(kind: str, rng: Random) -> tuple[str, str]:
    group = _pick(rng, GROUPS[kind])
    x = group.make(rng)
    if rng.random() < 1 / 3:
        return x.en, x.nom
    english, german = _pick(rng, group.frames)
    slots = {name: _pick(rng, fillings) for name, fillings in SLOTS.items()}
    return _sentence(english.format(x=x, **slots)), _sentence(german.format(x=x, **slots))


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] if text.endswith(".") else text


def _pick(rng: Random, items: Sequence[Item]) -> Item:
    # `Random.random` is the one method whose sequence Python promises to keep from version to version.
    return items[int(rng.random() * len(items))]


def _between(rng: Random, low: int, high: int) -> int:
    return low + int(rng.random() * (high - low + 1))


# Nouns and names. In the rows, an underscore stands for a space inside a field.

THE = {"m": ("der", "den", "dem"), "f": ("die", "die", "der"), "n": ("das", "das", "dem")}
ONE = {"m": ("ein", "einen", "einem"), "f": ("eine", "eine", "einer"), "n": ("ein", "ein", "einem")}


def _rows(text: str) -> list[list[str]]:
    return [[field.replace("_", " ") for field in row.split()] for row in text.split(",")]


def _nouns(text: str) -> list[Noun]:
    return [Noun(*row) for row in _rows(text)]


def _names(text: str) -> list[Forms]:
    return [_same(en, de) for en, de in _rows(text)]


def _definite(text: str) -> list[Forms]:
    return [Forms(f"the {en}", *(f"{the} {de}" for the in THE[gender])) for en, gender, de in _rows(text)]


def _same(en: str, de: str) -> Forms:
    return Forms(en, de, de, de)


SLOTS = {
    "city": _names(
        "Berlin Berlin, Munich München, Vienna Wien, Cologne Köln, Zurich Zürich, Rome Rom, Prague Prag, Milan Mailand"
    ),
    "event": _definite(
        "meeting f Besprechung, concert n Konzert, exam f Prüfung, party f Feier, course m Kurs, lecture m Vortrag,"
        "trip f Reise, game n Spiel"
    ),
    "place": _definite(
        "museum n Museum, library f Bibliothek, shop n Geschäft, bank f Bank, pharmacy f Apotheke, bakery f Bäckerei"
    ),
    "thing": _definite(
        "book n Buch, lamp f Lampe, table m Tisch, coat m Mantel, bicycle n Fahrrad, bag f Tasche, chair m Stuhl,"
        "camera f Kamera"
    ),
    "weekday": _names(
        "Monday Montag, Tuesday Dienstag, Wednesday Mittwoch, Thursday Donnerstag, Friday Freitag, Saturday Samstag,"
        "Sunday Sonntag"
    ),
}
SECOND, MINUTE, HOUR, DAY, WEEK, MONTH, YEAR = _nouns(
    "second seconds f Sekunde Sekunden Sekunden, minute minutes f Minute Minuten Minuten,"
    "hour hours f Stunde Stunden Stunden, day days m Tag Tage Tagen, week weeks f Woche Wochen Wochen,"
    "month months m Monat Monate Monaten, year years n Jahr Jahre Jahren"
)
COINS = {
    "USD": _nouns("dollar dollars m Dollar Dollar Dollar, cent cents m Cent Cent Cent"),
    "EUR": _nouns("euro euros m Euro Euro Euro, cent cents m Cent Cent Cent"),
    "GBP": _nouns("pound pounds n Pfund Pfund Pfund, penny pence m Penny Pence Pence"),
    "CHF": _nouns(
        "Swiss_franc Swiss_francs m Schweizer_Franken Schweizer_Franken Schweizer_Franken,"
        "centime centimes m Rappen Rappen Rappen"
    ),
    "JPY": _nouns("yen yen m Yen Yen Yen"),
}
NUMBERED = _rows(
    "page f Seite, question f Frage, letter m Brief, picture n Bild, word n Wort, door f Tür, sentence m Satz,"
    "chapter n Kapitel"
)
PIECES = _nouns(
    "apple apples m Apfel Äpfel Äpfeln, egg eggs n Ei Eier Eiern, lemon lemons f Zitrone Zitronen Zitronen,"
    "potato potatoes f Kartoffel Kartoffeln Kartoffeln, tomato tomatoes f Tomate Tomaten Tomaten,"
    "onion onions f Zwiebel Zwiebeln Zwiebeln, roll rolls n Brötchen Brötchen Brötchen,"
    "cake cakes m Kuchen Kuchen Kuchen"
)
DRY = _names("flour Mehl, sugar Zucker, rice Reis, salt Salz, coffee Kaffee")
DRY_MEASURES = _nouns(
    "kilogram kilograms n Kilogramm Kilogramm Kilogramm, gram grams n Gramm Gramm Gramm,"
    "bag bags m Beutel Beutel Beuteln, packet packets f Packung Packungen Packungen"
)
LIQUID = _names("milk Milch, water Wasser, juice Saft, oil Öl, wine Wein")
LIQUID_MEASURES = _nouns(
    "liter liters m Liter Liter Litern, bottle bottles f Flasche Flaschen Flaschen, glass glasses n Glas Gläser Gläsern"
)

# Composers: each docstring is an example.


@lru_cache(maxsize=20_000)
def spelled(number: int, to: str = "cardinal") -> Forms:
    """forty-seven: siebenundvierzig."""
    en, de = (num2words(number, lang=language, to=to) for language in ("en", "de"))
    # num2words says "einhunderteinstausend" for 101,000, where German drops the s inside the word.
    return _same(en, de.replace("einstausend", "eintausend"))


def formatted(write: Callable[..., str], *values: object, **options: object) -> Forms:
    """1,234.5: 1.234,5."""
    en, de = (write(*values, locale=locale, **options) for locale in ("en_US", "de_DE"))
    return _same(*(text.replace("\u00a0", " ").replace("\u202f", " ") for text in (en, de)))


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
    return several(_same(f"{en} and a half", f"{'ein' if number == 1 else de}einhalb"), noun)


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
    return _same(f"from {start.en} to {end.en}", f"vom {start.nom} bis zum {end.nom}")


def clock(minutes: int) -> Forms:
    """3:45 PM: 15:45 Uhr."""
    en, de, *_ = formatted(dates.format_time, time(*divmod(minutes, 60)), "short")
    return _same(en, f"{de} Uhr")


def clock_range(start: int, end: int) -> Forms:
    """from 9:30 AM to 3:45 PM: von 09:30 bis 15:45 Uhr."""
    first, last = clock(start), clock(end)
    return _same(f"from {first.en} to {last.en}", f"von {first.nom.removesuffix(' Uhr')} bis {last.nom}")


def spoken_clock(style: tuple[str, str], hour: int, part: tuple[str, str]) -> Forms:
    """half past three in the afternoon: halb vier nachmittags."""
    named, following = spelled(hour), spelled(hour % 12 + 1)
    german = style[1].format(hour=named.nom, next=following.nom).replace("eins Uhr", "ein Uhr")
    return _same(style[0].format(hour=named.en) + part[0], german + part[1])


# What is drawn: ranges, tables and sentence frames.

FIRST_DAY, LAST_DAY = date(1940, 1, 1).toordinal(), date(2039, 12, 31).toordinal()  # Two digits name each year.
HOURS = ((HOUR, MINUTE, 59), (MINUTE, SECOND, 59))
DAYS = ((YEAR, MONTH, 11), (MONTH, DAY, 29), (WEEK, DAY, 6), (DAY, HOUR, 23))
TOLD = (
    ("{hour} o'clock", "{hour} Uhr"),
    ("five past {hour}", "fünf nach {hour}"),
    ("ten past {hour}", "zehn nach {hour}"),
    ("quarter past {hour}", "Viertel nach {hour}"),
    ("twenty past {hour}", "zwanzig nach {hour}"),
    ("twenty-five past {hour}", "fünf vor halb {next}"),
    ("half past {hour}", "halb {next}"),
    ("twenty-five to {hour}", "fünf nach halb {hour}"),
    ("twenty to {hour}", "zwanzig vor {hour}"),
    ("quarter to {hour}", "Viertel vor {hour}"),
    ("ten to {hour}", "zehn vor {hour}"),
    ("five to {hour}", "fünf vor {hour}"),
)
PARTS = (
    (range(1, 13), "", ""),
    (range(5, 11), " in the morning", " morgens"),
    (range(2, 6), " in the afternoon", " nachmittags"),
    (range(6, 11), " in the evening", " abends"),
)


def _any_day(rng: Random) -> date:
    return date.fromordinal(_between(rng, FIRST_DAY, LAST_DAY))


def _any_date_range(rng: Random) -> Forms:
    first = _any_day(rng).replace(month=1, day=1) + timedelta(_between(rng, 0, 300))
    return date_range(first, first + timedelta(_between(rng, 1, 60)))


def _count(rng: Random, most: Sequence[int] = (12, 99, 99, 999), least: int = 1) -> int:
    number = _between(rng, least, _pick(rng, most))
    # Before a noun, German wavers between forms of 101, 201 and so on, so these are never drawn.
    return number - 1 if number > 1 and number % 100 == 1 else number


def _fraction(rng: Random) -> Decimal:
    return _between(rng, 1, 99) + Decimal(_between(rng, 1, 9)) / 10


def _percent(rng: Random) -> Forms:
    return formatted(numbers.format_percent, _fraction(rng) / 100, decimal_quantization=False)


def _span(rng: Random, units: Sequence[tuple[Noun, Noun, int]]) -> Forms:
    major, minor, most = _pick(rng, units)
    style = rng.random()
    if style < 0.25:
        return counted(_count(rng), _pick(rng, (major, minor)))
    if style < 0.65:
        return both(counted(_between(rng, 1, 30), major), counted(_between(rng, 1, most), minor))
    if style < 0.8:
        return and_a_half(_between(rng, 1, 12), major)
    return several(formatted(numbers.format_decimal, _fraction(rng)), _pick(rng, (major, minor)))


def _any_price(rng: Random) -> Forms:
    currency = _pick(rng, list(COINS))
    amount = _between(rng, 1_00, _pick(rng, (99_99, 999_99, 9_999_99)))
    return price(Decimal(amount) if currency == "JPY" else Decimal(amount) / 100, currency)


def _spoken_price(rng: Random) -> Forms:
    major, *minor = _pick(rng, list(COINS.values()))
    whole = counted(_count(rng, (12, 99, 999)), major)
    return both(whole, counted(_between(rng, 1, 99), minor[0])) if minor and rng.random() < 0.6 else whole


def _portion(rng: Random) -> Forms:
    measures, goods = _pick(rng, ((DRY_MEASURES, DRY), (LIQUID_MEASURES, LIQUID)))
    return portion(counted(_count(rng), _pick(rng, measures)), _pick(rng, goods))


def _weighed(rng: Random) -> Forms:
    measures, goods = _pick(rng, ((DRY_MEASURES, DRY), (LIQUID_MEASURES, LIQUID)))
    return portion(several(formatted(numbers.format_decimal, _fraction(rng)), measures[0]), _pick(rng, goods))


def _any_clock_range(rng: Random) -> Forms:
    start = _between(rng, 0, 22 * 60)
    return clock_range(start, _between(rng, start + 1, 24 * 60 - 1))


def _spoken_clock(rng: Random) -> Forms:
    hours, en, de = _pick(rng, PARTS)
    return spoken_clock(_pick(rng, TOLD), _pick(rng, hours), (en, de))


DATE_LAST = (
    ("on {x.en}", "am {x.dat}"),
    ("{event.en} is on {x.en}.", "{event.nom} ist am {x.dat}."),
    ("{event.en} begins on {x.en}.", "{event.nom} beginnt am {x.dat}."),
)
DATE_INSIDE = (
    ("{event.en} takes place on {x.en}.", "{event.nom} findet am {x.dat} statt."),
    ("We fly to {city.en} on {x.en}.", "Am {x.dat} fliegen wir nach {city.nom}."),
    ("He was born in {city.en} on {x.en}.", "Er wurde am {x.dat} in {city.nom} geboren."),
)
# "Mittwoch, dem 9. Mai 2001" is an apposition: where the sentence goes on, German closes it with a comma.
FULL_DATE_INSIDE = tuple((english, german.replace("{x.dat}", "{x.dat},")) for english, german in DATE_INSIDE)
DATE_RANGE = (
    ("{place.en} is closed {x.en}.", "{place.nom} ist {x.acc} geschlossen."),
    ("We are in {city.en} {x.en}.", "{x.nom} sind wir in {city.nom}."),
    ("She works in {city.en} {x.en}.", "Sie arbeitet {x.acc} in {city.nom}."),
)
SHORT_TERM = (
    ("{x.en} ago", "vor {x.dat}"),
    ("{event.en} lasts {x.en}.", "{event.nom} dauert {x.acc}."),
    ("{event.en} began {x.en} ago.", "{event.nom} hat vor {x.dat} begonnen."),
    ("The train to {city.en} leaves in {x.en}.", "Der Zug nach {city.nom} fährt in {x.dat} ab."),
)
LONG_TERM = (
    ("{x.en} ago", "vor {x.dat}"),
    ("She stayed in {city.en} for {x.en}.", "Sie ist {x.acc} in {city.nom} geblieben."),
    ("I moved to {city.en} {x.en} ago.", "Ich bin vor {x.dat} nach {city.nom} gezogen."),
    ("We will be in {city.en} in {x.en}.", "In {x.dat} sind wir in {city.nom}."),
)
NUMBER = (
    ("I have counted to {x.en}.", "Ich habe bis {x.nom} gezählt."),
    ("She wrote down the number {x.en}.", "Sie hat die Zahl {x.nom} aufgeschrieben."),
)
LABEL = (
    ("Room {x.en} is free.", "Zimmer {x.nom} ist frei."),
    ("Please read page {x.en} today.", "Bitte lesen Sie heute Seite {x.nom}."),
    ("The bus to {city.en} has the number {x.en}.", "Der Bus nach {city.nom} hat die Nummer {x.nom}."),
)
HEADS = (
    ("{city.en} has {x.en} inhabitants.", "{city.nom} hat {x.acc} Einwohner."),
    ("There were {x.en} visitors in {city.en} yesterday.", "Gestern waren {x.nom} Besucher in {city.nom}."),
    ("We have sold {x.en} tickets for {event.en}.", "Für {event.acc} haben wir {x.acc} Karten verkauft."),
)
PERCENT = (
    ("Prices in {city.en} rose by {x.en}.", "In {city.nom} sind die Preise um {x.acc} gestiegen."),
    ("{thing.en} is {x.en} cheaper today.", "{thing.nom} ist heute {x.acc} billiger."),
)
ORDINAL = (
    ("{x.en} is missing.", "{x.nom} fehlt."),
    ("I have already seen {x.en}.", "Ich habe {x.acc} schon gesehen."),
    ("She began with {x.en}.", "Sie hat mit {x.dat} begonnen."),
)
PRICE = (
    ("{thing.en} costs {x.en}.", "{thing.nom} kostet {x.acc}."),
    ("I paid {x.en} for {thing.en}.", "Für {thing.acc} habe ich {x.acc} bezahlt."),
    ("We sold {thing.en} for {x.en} yesterday.", "Gestern haben wir {thing.acc} für {x.acc} verkauft."),
    ("You cannot buy {thing.en} with {x.en}.", "Mit {x.dat} kann man {thing.acc} nicht kaufen."),
    ("She still owes me {x.en}.", "Sie schuldet mir noch {x.acc}."),
)
QUANTITY = (
    ("We need {x.en} tomorrow.", "Morgen brauchen wir {x.acc}."),
    ("Please buy {x.en}.", "Bitte kaufen Sie {x.acc}."),
    ("I have ordered {x.en}.", "Ich habe {x.acc} bestellt."),
    ("She brought {x.en} on {weekday.en}.", "Am {weekday.nom} hat sie {x.acc} mitgebracht."),
    ("He came back from {city.en} with {x.en}.", "Er ist mit {x.dat} aus {city.nom} zurückgekommen."),
)
TIME = (
    ("at {x.en}", "um {x.acc}"),
    ("on {weekday.en} at {x.en}", "am {weekday.nom} um {x.acc}"),
    ("{event.en} begins at {x.en} on {weekday.en}.", "Am {weekday.nom} beginnt {event.nom} um {x.acc}."),
    ("The train to {city.en} leaves at {x.en}.", "Der Zug nach {city.nom} fährt um {x.acc} ab."),
    ("We arrived in {city.en} at {x.en} yesterday.", "Gestern sind wir um {x.acc} in {city.nom} angekommen."),
    ("She will call us at {x.en} on {weekday.en}.", "Sie wird uns am {weekday.nom} um {x.acc} anrufen."),
)
TIME_RANGE = (
    ("{place.en} is open {x.en} on {weekday.en}.", "Am {weekday.nom} ist {place.nom} {x.acc} geöffnet."),
    ("{event.en} lasts {x.en}.", "{event.nom} dauert {x.acc}."),
    ("I have to work {x.en} on {weekday.en}.", "Am {weekday.nom} muss ich {x.acc} arbeiten."),
)

GROUPS = {
    "date": (
        Group(lambda rng: full_date(_any_day(rng)), DATE_LAST + FULL_DATE_INSIDE),
        Group(lambda rng: formatted(dates.format_date, _any_day(rng), "long"), DATE_LAST + DATE_INSIDE),
        Group(lambda rng: formatted(dates.format_date, _any_day(rng), "short"), DATE_LAST + DATE_INSIDE),
        Group(lambda rng: spoken_date(_any_day(rng)), DATE_LAST + DATE_INSIDE),
        Group(_any_date_range, DATE_RANGE),
    ),
    "duration": (
        Group(lambda rng: _span(rng, HOURS), SHORT_TERM),
        Group(lambda rng: _span(rng, DAYS), LONG_TERM),
    ),
    "number": (
        Group(lambda rng: spelled(_between(rng, 0, _pick(rng, (99, 9_999, 99_999, 999_999)))), NUMBER),
        Group(lambda rng: spelled(_between(rng, 1, _pick(rng, (99, 999)))), LABEL),
        Group(lambda rng: spelled(_count(rng, (99, 999, 9_999, 999_999), least=2)), HEADS),
        Group(lambda rng: formatted(numbers.format_decimal, _between(rng, 1_000, 999_999)), HEADS),
        Group(lambda rng: ordinal(_between(rng, 1, _pick(rng, (31, 99, 999))), *_pick(rng, NUMBERED)), ORDINAL),
        Group(_percent, PERCENT),
    ),
    "price": (Group(_any_price, PRICE), Group(_spoken_price, PRICE)),
    "quantity": (
        Group(_portion, QUANTITY),
        Group(_weighed, QUANTITY),
        Group(lambda rng: counted(_count(rng), _pick(rng, PIECES)), QUANTITY),
        Group(lambda rng: both(_portion(rng), counted(_count(rng), _pick(rng, PIECES))), QUANTITY),
    ),
    "time": (
        Group(lambda rng: clock(_between(rng, 0, 24 * 60 - 1)), TIME),
        Group(_spoken_clock, TIME),
        Group(_any_clock_range, TIME_RANGE),
    ),
}
