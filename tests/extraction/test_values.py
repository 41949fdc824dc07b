"""Values in the words of documents: dates, amounts, choices, check digits."""

from __future__ import annotations

import datetime
import re
from decimal import Decimal
from typing import Any

import pytest

from paligemma.extraction.builtin import IdCard
from paligemma.extraction.dates import UnreadableError, read_date, read_datetime, read_time
from paligemma.extraction.mrz import read_mrz
from paligemma.extraction.patterns import pattern_of
from paligemma.extraction.schema import Leaf
from paligemma.extraction.values import (
    Formats,
    is_absent,
    is_iban,
    is_vat,
    read_amount,
    read_value,
)


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("2017-05-09", "2017-05-09"),
        ("20170509", "2017-05-09"),
        ("09.05.2017", "2017-05-09"),
        ("24/09/2019", "2019-09-24"),
        ("9/14/19", "2019-09-14"),
        ("Sep 24, 2019", "2019-09-24"),
        ("Tuesday, May 9, 2017", "2017-05-09"),
        ("09-MAY-2017", "2017-05-09"),
        ("24. Sept. 2019", "2019-09-24"),
        ("12 März 2020", "2020-03-12"),
        ("le 1er février 2021", "2021-02-01"),
        ("15 août 2022", "2022-08-15"),
        ("5 de mayo de 2020", "2020-05-05"),
        ("1 мая 2020", "2020-05-01"),
        ("2019年9月24日", "2019-09-24"),
        ("٢٤/٠٩/٢٠١٩", "2019-09-24"),
        ("2019-09-24T10:00", "2019-09-24"),
        ("05/05/2020", "2020-05-05"),
        ("Fr., 03.04.2026", "2026-04-03"),
    ],
)
def test_dates_in_any_order(text: str, date: str) -> None:
    assert read_date(text) == datetime.date.fromisoformat(date)


@pytest.mark.parametrize(
    "text",
    [
        "25/05/202",
        "113/3/5",
        "R6.6.6",
        "令和6年6月6日",
        "03/04/2020",
        "1/6/58",
        "3 listopad 2020",
        "31/2/2020",
        "May 2019",
        "mar 9 mai 2017",
        "x",
        "",
    ],
)
def test_ambiguous_and_impossible_dates_are_not_guessed(text: str) -> None:
    with pytest.raises(UnreadableError) as caught:
        read_date(text)
    assert not text or text not in str(caught.value)  # errors repeat nothing of a document


def test_order_and_language_settle_a_date() -> None:
    assert read_date("03/04/2020", "dmy") == datetime.date(2020, 4, 3)
    assert read_date("03/04/2020", "mdy") == datetime.date(2020, 3, 4)
    assert read_date("20/04/03", "ymd") == datetime.date(2020, 4, 3)
    assert read_date("03/04/2020", language="de") == datetime.date(2020, 4, 3)
    assert read_date("3 listopad 2020", language="pl") == datetime.date(2020, 11, 3)
    assert read_date("3 listopad 2020", language="hr") == datetime.date(2020, 10, 3)
    assert read_date("mar. 9 mai 2017", language="fr") == datetime.date(2017, 5, 9)
    assert read_date("1/6/58", "mdy") == datetime.date(1958, 1, 6)


def test_times() -> None:
    assert read_time("2:05 pm") == datetime.time(14, 5)
    assert read_time("12 a.m.") == datetime.time(0)
    assert read_time("14h30") == datetime.time(14, 30)
    assert read_datetime("Sep 24, 2019 at 3:05 PM") == datetime.datetime(2019, 9, 24, 15, 5)
    assert read_datetime("2024-05-01T14:05:33.25Z").time() == datetime.time(14, 5, 33)
    assert read_time("9 o'clock") == read_time("9h") == datetime.time(9)
    assert read_time("at 14.30 Uhr") == datetime.time(14, 30)
    for text in ("25:00", "0", "room 9", "12.05.2017", "14:305", "1,5 h", "0 pm"):
        with pytest.raises(UnreadableError):
            read_time(text)


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("$4,699.67", "4699.67"),
        ("1.234,50 €", "1234.50"),
        ("1 234,50", "1234.50"),
        ("1'234.50", "1234.50"),
        ("EUR 1,299", "1299"),
        ("1.234.567", "1234567"),
        ("0,79 €", "0.79"),
        ("0.125", "0.125"),
        ("(12,00)", "-12.00"),
        ("-$3.00", "-3.00"),
        ("5-", "-5"),
        ("CHF 12.–", "12"),
        ("400 Stk", "400"),
        ("١٢٫٥".replace("٫", "."), "12.5"),
    ],
)
def test_amounts(text: str, amount: str) -> None:
    assert read_amount(text) == Decimal(amount)


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("$.99", "0.99"),
        ("-.50", "-0.50"),
        ("Rs.500/-", "500"),
        ("₹1,23,456.78", "123456.78"),
        ("CHF 1’234.50", "1234.50"),
        ("١٬٢٣٤٫٥٠", "1234.50"),
        ("12 .50", "12.50"),
        ("1,5 Mio. €", "1500000"),
        ("12 k€", "12000"),
        ("2.5M", "2500000"),
        ("1,29 B", "1.29"),
    ],
)
def test_amounts_of_other_countries_and_scales_are_read_and_can_be_written(
    text: str, amount: str
) -> None:
    assert read_amount(text) == Decimal(amount)
    pattern = pattern_of(Leaf(path="x", keys=("x",), kind="amount"))
    assert re.fullmatch(pattern, text) or text == "12 .50"


@pytest.mark.parametrize("text", ["-,50 €", "1,234,5", "12.34,5", "05 03 2024", "12 50", "1.23.45"])
def test_numbers_that_may_be_others_are_not_read_as_amounts(text: str) -> None:
    with pytest.raises(UnreadableError):
        read_amount(text)


def test_the_decimal_mark_settles_an_amount() -> None:
    assert read_amount("1.299", ",") == 1299
    assert read_amount("1.299", ".") == Decimal("1.299")
    for text in ("12 of 30", "none", "1,2.3,4"):
        with pytest.raises(UnreadableError):
            read_amount(text)


def leaf(kind: Any, **more: Any) -> Leaf:
    return Leaf(path="x", keys=("x",), kind=kind, **more)


def test_values_of_each_kind() -> None:
    def value(of: Leaf, text: str, **formats: Any) -> Any:
        return read_value(of, text, Formats(**formats)).value

    assert value(leaf("integer"), "40 years") == 40
    assert value(leaf("integer"), "1,299") == 1299
    assert value(leaf("integer"), "1.5") is None
    assert value(leaf("number"), "0.125 kg") == 0.125
    assert value(leaf("number"), "1.234") == 1.234
    assert value(leaf("number"), "1,234") is None  # two readings
    assert value(leaf("number"), "1,234", decimal_mark=",") == 1.234
    assert value(leaf("boolean"), "Yes.") is True
    assert value(leaf("boolean"), "nein") is False
    assert value(leaf("boolean"), "maybe") is None
    assert value(leaf("boolean", choices=(True,)), "yes") is True
    assert value(leaf("boolean", choices=(True,)), "no") is None
    assert value(leaf("choice", choices=("Single", "Married")), "SINGLE") == "Single"
    assert value(leaf("choice", choices=(1, 2)), "2") == 2
    assert value(leaf("choice", choices=("a",)), "b") is None
    assert value(leaf("text"), "  two \n lines ") == "two lines"
    assert read_value(leaf("text", max_length=3), "four", Formats()).problem


@pytest.mark.parametrize("kind", ["integer", "number", "amount", "date", "time", "datetime"])
@pytest.mark.parametrize("text", ["9" * 5000, "9" * 400, "9" * 39 + "/1/1", "1." + "0" * 500])
def test_endless_numbers_are_not_read(kind: str, text: str) -> None:
    reading = read_value(leaf(kind), text, Formats())
    assert reading.value is None
    assert reading.problem


def test_absent_words_are_none_without_a_problem() -> None:
    for text in ("unanswerable", "None", "N/A", "", " - ", "k.A.", "Aucun"):
        assert is_absent(text)
        reading = read_value(leaf("date"), text, Formats())
        assert (reading.value, reading.problem) == (None, None)


def test_check_digits() -> None:
    assert is_iban("DE88200800000970375700")
    assert not is_iban("DE88200800000970375701")
    for number in (
        "DE136695976",
        "FR40303265045",
        "IT00743110157",
        "BE0403019261",
        "ATU13585627",
        "GB980780684",  # the form alone is checked
    ):
        assert is_vat(number)
    for number in ("DE136695978", "FR84323140391", "IT00743110158", "ATU13585626", "X1"):
        assert not is_vat(number)
    reading = read_value(leaf("text", format="iban"), "DE88 2008 0000 0970 3757 01", Formats())
    assert reading.value == "DE88200800000970375701"
    assert reading.problem == "the check digits of this IBAN are wrong"
    zone = (
        "P<UTOERIKSSON<<ANNA<MARIA<<<<<<<<<<<<<<<<<<<\nL898902C36UTO7408122F1204159ZE184226B<<<<<10"
    )
    reading = read_value(leaf("text", format="mrz"), zone, Formats())
    assert (reading.value, reading.problem) == (zone.replace("\n", " "), None)
    reading = read_value(leaf("text", format="mrz"), zone.replace("7408122", "7408132"), Formats())
    assert reading.problem == "the check digits of this machine-readable zone are wrong"
    reading = read_value(leaf("text", format="mrz"), zone[:-1], Formats())
    assert (reading.value, reading.problem is None) == (None, False)
    reading = read_value(leaf("text", format="vat"), "USt-ID: DE 136 695 976", Formats())
    assert (reading.value, reading.problem) == ("DE136695976", None)


# The specimens of ICAO Doc 9303, parts 4 to 6, and one with a longer number.
NAME = "ERIKSSON<<ANNA<MARIA"
SPECIMENS = (
    (f"P<UTO{NAME}".ljust(44, "<"), "L898902C36UTO7408122F1204159ZE184226B<<<<<10"),
    (f"I<UTO{NAME}".ljust(36, "<"), "D231458907UTO7408122F1204159<<<<<<<6"),
    ("I<UTOD231458907<<<<<<<<<<<<<<<", "7408122F1204159UTO<<<<<<<<<<<6", NAME.ljust(30, "<")),
    ("I<UTOD23145890<AB112234566<<<<", "7408122F1204159UTO<<<<<<<<<<<6", NAME.ljust(30, "<")),
)


@pytest.mark.parametrize("lines", SPECIMENS)
def test_machine_readable_zones_have_check_digits(lines: tuple[str, ...]) -> None:
    zone = read_mrz("\n".join(lines))
    assert zone is not None
    assert zone.is_valid
    assert (zone.date_of_birth, zone.date_of_expiry) == ("740812", "120415")
    assert zone.number in ("L898902C3", "D23145890", "D23145890AB11223456")
    for place, letter in enumerate(text := "".join(lines)):
        if letter.isdigit():
            wrong = text[:place] + str((int(letter) + 1) % 10) + text[place + 1 :]
            assert (changed := read_mrz(wrong)) is not None
            assert not changed.is_valid, place
    assert read_mrz(text[:-1]) is read_mrz(text[:-1] + "é") is None


def test_what_an_id_card_says_twice_must_agree() -> None:
    given = {
        **{"surname": "Eriksson", "document_number": "D-231 45890", "mrz": " ".join(SPECIMENS[2])},
        **{"date_of_birth": "1974-08-12", "date_of_issue": "2007-04-15"},
        "date_of_expiry": "2012-04-15",
    }
    assert IdCard.model_validate(given).mrz is not None
    for change, reason in (
        ({"document_number": "D23145891"}, "the number of the document is not that"),
        ({"date_of_birth": "1974-08-13"}, "the date of birth is not that"),
        ({"date_of_expiry": "2013-04-15"}, "the date of expiry is not that"),
        ({"date_of_issue": "2022-04-15"}, "the date of expiry is before the date of issue"),
        (
            {"date_of_issue": None, "mrz": None, "date_of_birth": "2019-01-01"},
            "before the date of birth",
        ),
    ):
        with pytest.raises(ValueError, match=reason):
            IdCard.model_validate({**given, **change})
    assert IdCard.model_validate({"surname": "A", "date_of_expiry": "2012-04-15"}).mrz is None
