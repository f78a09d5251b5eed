"""What IFEval's checkers need beside lm-eval: NLTK's sentence data, and a language guesser that does not guess anew."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from typing import Any

from pytest_vllmperf.errors import TaskUnavailable

__all__ = ["needs_sentence_data", "sentence_data_missing", "without_downloads"]

_SENTENCE_CHECKS = frozenset(("length_constraints:number_sentences", "change_case:capital_word_frequency"))


@contextlib.contextmanager
def without_downloads() -> Iterator[None]:
    """Import lm-eval's checkers without their download of punkt_tab, and seed langdetect.

    The download happens on import, says that it succeeded when it did not, and unseeded language guesses move the
    score from run to run.

    Raises:
        TaskUnavailable: A package of lm-eval's ``ifeval`` extra is missing.
    """
    try:
        import langdetect
        import nltk
    except ImportError as error:
        raise TaskUnavailable(f"IFEval needs the package {error.name!r}: pip install 'lm-eval[ifeval]'") from error
    langdetect.DetectorFactory.seed = 0
    download = nltk.download
    nltk.download = lambda *_, **__: False
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        nltk.download = download


def sentence_data_missing() -> bool:
    """True where NLTK finds no punkt_tab, without which some instructions cannot be checked."""
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return True
    return False


def needs_sentence_data(doc: Mapping[str, Any]) -> bool:
    """True for a prompt with an instruction that counts sentences, or words by NLTK's tokenizer."""
    return not _SENTENCE_CHECKS.isdisjoint(doc.get("instruction_id_list", ()))
