import pytest

from abridged.data.tokenizer import learn_tokenizer

WORDS = "One line of a text. Another line, which is longer, of the same text! And a third? Yes.\n" * 20


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level tokenizer with BART's special tokens."""
    return learn_tokenizer(WORDS, 300, 64, encoder=True)
