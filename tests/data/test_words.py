"""Words of a bank inside prompts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqlora_core.data.prompts import split_at_weights
from seqlora_core.data.words import named_words, split_at_words

WORDS = ["sksdog", "sksdog2", "my cat", "<chair>"]


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("photo of a sksdog", ["sksdog"]),
        ("SKSDOG, on a beach", ["sksdog"]),
        ("(sksdog:1.2) and sksdog2", ["sksdog", "sksdog2"]),
        ("sksdogs and asksdog and sks dog", []),
        ("my cat's chair, a <chair>.", ["my cat", "<chair>"]),
        ("", []),
    ],
)
def test_whole_words_are_found_in_any_case_and_the_longest_first(prompt, found):
    assert [word for _, word in split_at_words(prompt, WORDS) if word] == found


@given(st.text(max_size=60), st.lists(st.text(min_size=1, max_size=8), max_size=4))
def test_the_pieces_of_a_prompt_are_the_prompt(prompt, words):
    assert "".join(text for text, _ in split_at_words(prompt, words)) == prompt


def test_named_words_are_listed_once_in_their_order():
    assert named_words(["a sksdog2", "my cat and a sksdog2"], WORDS) == ["sksdog2", "my cat"]


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("a (sksdog:1.2) on grass", [("a ", 1.0), ("sksdog", 1.2), (" on grass", 1.0)]),
        ("(dog: -.5)(cat:2)", [("dog", -0.5), ("cat", 2.0)]),
        ("a dog (brown), 10:30 (sic: x)", [("a dog (brown), 10:30 (sic: x)", 1.0)]),
        ("", []),
    ],
)
def test_weights_are_numbers_in_parentheses(prompt, pieces):
    assert split_at_weights(prompt) == pieces
