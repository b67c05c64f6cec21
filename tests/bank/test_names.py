"""Names and tokens that a reader, or CLIP, takes for the same."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqlora_core.bank.manifest import BaseIdentity, Concept, Manifest
from seqlora_core.bank.names import check_new_words, fold
from seqlora_core.errors import UserError

ALPHABETS = "abcdefghijklmnopqrstuvwxyzäéñøßабвгдеёжийклмнопрстуфхцчшщыьэюяіјѕαβγδεζηθικλμνξοπρστυφχψω0123456789 -_"


def manifest(*names: str) -> Manifest:
    concepts = (Concept(name, "sksx", "dog", 4, "seqlora", "x", "0", "now") for name in names)
    return Manifest(BaseIdentity("b", "0"), {}, tuple(concepts))


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("My Dog", "my dog"),
        ("Stra\u00dfe", "STRASSE"),
        ("caf\u00e9", "cafe\u0301"),  # composed, and as macOS writes it
        ("dog", "\uff44\uff4f\uff47"),  # full width
        ("\ufb01sh", "fish"),  # a ligature
        ("dog", "d\u043eg"),  # Cyrillic o
        ("COCO", "\u0421\u041e\u0421\u041e"),
        ("no\u00eb", "no\u0451"),  # Cyrillic e with dots
        ("oval", "\u03bfv\u03b1l"),  # Greek o and a
        ("my  dog", "my dog"),
        ("dog", "dog\ufe0f"),  # a variation selector, which does not show
    ],
)
def test_names_that_look_alike_are_one_name_in_a_bank(name, other):
    assert manifest(name).find(other) is not None


def test_names_that_look_different_stay_different():
    assert manifest("dog", "caf\u00e9", "concept 1", "\u7336").find("cafe") is None
    assert manifest("concept 1", "sksl").find("concept l") is None


def test_a_name_written_exactly_wins_among_look_alikes():
    old_bank = manifest("dog", "d\u043eg")
    assert [old_bank.find(name).name for name in ("dog", " d\u043eg ", "DOG")] == ["dog", "d\u043eg", "dog"]


@given(st.text(ALPHABETS))
def test_folding_ignores_case_and_unicode_form_and_is_stable(text):
    folded = fold(text)
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD")]
    assert {fold(form) for form in (*forms, text.upper(), text.casefold(), folded, f" {text} ")} == {folded}


def test_a_usable_token_is_accepted_without_a_word():
    assert check_new_words("sksdog", "dog", ["skscat", "sksbird"], {"dog</w>", "cat</w>"}) == []
    assert check_new_words("sks", "dog", [], {"sks</w>", "dog</w>"}) == []
    assert check_new_words("\u732b\u732b", "cat") == []


@pytest.mark.parametrize("token", ["dog", "Dog", "d\u043eg", "DOG"])
def test_a_token_that_is_the_class_word_is_refused(token):
    with pytest.raises(UserError, match="'sksdog'"):
        check_new_words(token, "dog")


@pytest.mark.parametrize("token", ["SKSdog", "sksd\u043eg", "\uff53ksdog"])
def test_a_token_written_as_another_but_for_case_or_look_is_refused(token):
    with pytest.raises(UserError, match="'sksdog'"):
        check_new_words(token, "cat", ["skscat", "sksdog"])


def test_the_same_token_again_is_reported_for_versions_of_a_concept():
    (note,) = check_new_words("sksdog", "dog", ["sksdog", "sksdog"])
    assert "'sksdog' too" in note


@pytest.mark.parametrize(("token", "known"), [("photo", ()), ("Woman", ()), ("happy", {"happy</w>"})])
def test_a_token_that_is_an_ordinary_word_is_reported(token, known):
    (note,) = check_new_words(token, "dog", [], known)
    assert "ordinary word" in note
    assert f"'sks{token.lower()}'" in note


def test_mixed_alphabets_and_a_doubled_class_word_are_reported():
    (mixed,) = check_new_words("sksd\u043eg", "cat")
    assert "look like" in mixed
    (doubled,) = check_new_words("sks dog", "dog")
    assert "class word" in doubled
    assert check_new_words("\u0441\u043e\u0431\u0430\u043a\u0430", "dog") == []  # all of it Cyrillic: somebody's word
