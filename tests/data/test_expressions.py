"""Expressions against German and English written by hand."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

import pytest

from seq2seq.data import expressions
from seq2seq.data.expressions import Forms
from seq2seq.data.phrasebook import TOLD

babel_dates = pytest.importorskip("babel.dates")
babel_numbers = pytest.importorskip("babel.numbers")
pytest.importorskip("num2words")

HOUR, EGG, LITER = expressions.HOUR, expressions.PIECES[1], expressions.LIQUID_MEASURES[0]
BAG, MILK, RICE = expressions.DRY_MEASURES[2], expressions.LIQUID[0], expressions.DRY[2]
DAY, MONTH, FRANC = expressions.DAY, expressions.MONTH, expressions.COINS["CHF"][0]
MAY_9, JUNE_21 = date(2001, 5, 9), date(2001, 6, 21)


def written(day: date, style: str) -> Forms:
    return expressions.formatted(babel_dates.format_date, day, style)


@pytest.mark.parametrize(
    ("forms", "source", "target"),
    [
        (expressions.spelled(47), "forty-seven", "siebenundvierzig"),
        (
            expressions.spelled(1_234),
            "one thousand, two hundred and thirty-four",
            "eintausendzweihundertvierunddreißig",
        ),
        (expressions.spelled(101_000), "one hundred and one thousand", "einhunderteintausend"),
        (expressions.spelled(100_001), "one hundred thousand and one", "einhunderttausendeins"),
        (expressions.formatted(babel_numbers.format_decimal, 45_678), "45,678", "45.678"),
        (expressions.ordinal(21, "page", "f", "Seite"), "the twenty-first page", "die einundzwanzigste Seite"),
        (expressions.counted(1, HOUR), "one hour", "eine Stunde"),
        (expressions.counted(25, HOUR), "twenty-five hours", "fünfundzwanzig Stunden"),
        (expressions.and_a_half(1, HOUR), "one and a half hours", "eineinhalb Stunden"),
        (expressions.and_a_half(12, DAY), "twelve and a half days", "zwölfeinhalb Tage"),
        (
            expressions.both(expressions.counted(1, DAY), expressions.counted(3, HOUR)),
            "one day and three hours",
            "ein Tag und drei Stunden",
        ),
        (expressions.portion(expressions.counted(1, LITER), MILK), "one liter of milk", "ein Liter Milch"),
        (expressions.price(Decimal("1234.50"), "USD"), "$1,234.50", "1.234,50 $"),
        (expressions.price(Decimal("12.50"), "CHF"), "CHF 12.50", "12,50 CHF"),
        (expressions.price(Decimal(1234), "JPY"), "¥1,234", "1.234 ¥"),
        (expressions.full_date(MAY_9), "Wednesday, May 9, 2001", "Mittwoch, 9. Mai 2001"),
        (written(MAY_9, "long"), "May 9, 2001", "9. Mai 2001"),
        (written(MAY_9, "short"), "5/9/01", "09.05.01"),
        (expressions.spoken_date(JUNE_21), "the twenty-first of June 2001", "der einundzwanzigste Juni 2001"),
        (expressions.date_range(MAY_9, JUNE_21), "from May 9 to June 21, 2001", "vom 9. Mai bis zum 21. Juni 2001"),
        (expressions.clock(15 * 60 + 45), "3:45 PM", "15:45 Uhr"),
        (expressions.clock(5), "12:05 AM", "00:05 Uhr"),
        (expressions.clock_range(570, 945), "from 9:30 AM to 3:45 PM", "von 09:30 bis 15:45 Uhr"),
    ],
)
def test_golden(forms: Forms, source: str, target: str) -> None:
    assert (forms.en, forms.nom) == (source, target)


@pytest.mark.parametrize(
    ("style", "hour", "source", "target"),
    [
        (0, 1, "one o'clock", "ein Uhr"),
        (3, 1, "quarter past one", "Viertel nach eins"),
        (5, 12, "twenty-five past twelve", "fünf vor halb eins"),
        (6, 3, "half past three", "halb vier"),
        (7, 4, "twenty-five to four", "fünf nach halb vier"),
        (9, 9, "quarter to nine", "Viertel vor neun"),
    ],
)
def test_golden_clock(style: int, hour: int, source: str, target: str) -> None:
    told = TOLD[style]
    assert expressions.spoken_clock(told, hour, ("", ""))[:2] == (source, target)
    evening = expressions.spoken_clock(told, hour, (" in the evening", " abends"))
    assert evening[:2] == (f"{source} in the evening", f"{target} abends")


def test_german_cases() -> None:
    assert expressions.portion(expressions.counted(1, BAG), RICE)[1:] == (
        "ein Beutel Reis",
        "einen Beutel Reis",
        "einem Beutel Reis",
    )
    assert expressions.counted(3, MONTH)[1:] == ("drei Monate", "drei Monate", "drei Monaten")
    assert expressions.counted(1, EGG)[1:] == ("ein Ei", "ein Ei", "einem Ei")
    assert expressions.counted(1, FRANC).acc == "einen Schweizer Franken"
    assert expressions.ordinal(7, "letter", "m", "Brief")[1:] == (
        "der siebte Brief",
        "den siebten Brief",
        "dem siebten Brief",
    )
    assert expressions.full_date(MAY_9).dat == "Mittwoch, dem 9. Mai 2001"
    assert expressions.spoken_date(MAY_9).dat == "neunten Mai 2001"
