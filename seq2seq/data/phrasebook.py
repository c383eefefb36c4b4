"""An endless English-German corpus that needs no network: dates, durations, numbers, prices, quantities and times.

Babel (CLDR) formats what is written in digits, num2words spells what is written in words, and the tables below put
both into phrases and short sentences. The German is a function of the English: no source has two targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import date, timedelta
from decimal import Decimal
from importlib import import_module
from itertools import cycle
from random import Random
from typing import NamedTuple, TypeVar

from seq2seq.data.clean import text_hash
from seq2seq.data.expressions import (
    COINS,
    DAY,
    DRY,
    DRY_MEASURES,
    HOUR,
    LIQUID,
    LIQUID_MEASURES,
    MINUTE,
    MONTH,
    NUMBERED,
    PIECES,
    SECOND,
    SLOTS,
    WEEK,
    YEAR,
    Forms,
    Noun,
    and_a_half,
    both,
    clock,
    clock_range,
    counted,
    date_range,
    formatted,
    full_date,
    ordinal,
    portion,
    price,
    several,
    spelled,
    spoken_clock,
    spoken_date,
)
from seq2seq.support.errors import missing_extra

with suppress(ImportError):  # `draw` says what to install.
    from babel import dates, numbers

KINDS = ("date", "duration", "number", "price", "quantity", "time")
HELD_OUT_SHARE = 0.05

Item = TypeVar("Item")


class Phrase(NamedTuple):
    """A source in English, its target in German, and which of `KINDS` it is."""

    source: str
    target: str
    kind: str


class Group(NamedTuple):
    """A way to make expressions, and the sentences that take them, English and German."""

    make: Callable[[Random], Forms]
    frames: Sequence[tuple[str, str]]


def draw(seed: int, *, held_out: bool) -> Iterator[Phrase]:
    """Draw phrases without end, one of each kind in turn; a phrase may come up again.

    Given the same `seed` and `held_out`, every process returns the same sequence. With `held_out`, only phrases whose
    source `is_held_out` are drawn; without it, only the others. Raises `UserError` where Babel or num2words is missing.
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
    return text_hash(source) < HELD_OUT_SHARE * 2**63


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
    ("{place.en} is open {x.en}.", "{place.nom} ist {x.acc} geöffnet."),
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
