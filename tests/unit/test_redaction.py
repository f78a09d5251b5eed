"""Secrets in text."""

import base64
import json
import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllmperf.domain.redaction import REDACTED, Redactor, secrets_in


@pytest.mark.parametrize(
    "text",
    [
        "HF_TOKEN=hf_abcdefghijklmnopqrstuvwx",
        "Authorization: Bearer abc.def-ghi_jkl==",
        "key sk-abcdefghijklmnopqrstuvwxyz",
        "https://me:password@example.org/x",
        "ghp_0123456789012345678901234567890123456789",
        "AKIAIOSFODNN7EXAMPLE",
    ],
)
def test_what_looks_like_a_secret_is_taken_for_one(text: str) -> None:
    cleaned = Redactor().clean(text)
    assert REDACTED in cleaned
    assert not any(part in cleaned for part in ("abcdefghijk", "abc.def", "password", "0123456789", "IOSFODNN"))


def test_ordinary_text_is_left_alone() -> None:
    text = "the token bearer said: 12 tokens/s at http://127.0.0.1:8000/v1, sk-learn, hf_hub"
    assert Redactor(["secret"]).clean(text) == text


def test_names_tell_secrets() -> None:
    env = {"HF_TOKEN": "a1", "AWS_SECRET_ACCESS_KEY": "b2", "MY_PASSWORD": "c3"}
    others = {"TOKENIZERS_PARALLELISM": "no", "PATH": "/", "PWD": "/work"}
    command = ("x", "--api-key", "d4", "--hf-token=e5", "--max-tokens", "5")
    assert secrets_in({**env, **others}, command) == {"a1", "b2", "c3", "d4", "e5"}


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)
)
SECRET = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=6, max_size=40)


@given(SECRET, st.text(max_size=20), st.text(max_size=20))
def test_a_secret_is_found_in_each_form_it_travels_in(secret: str, before: str, after: str) -> None:
    redactor = Redactor([secret])
    for form in (secret, urllib.parse.quote(secret, safe=""), base64.b64encode(secret.encode()).decode().rstrip("=")):
        cleaned = redactor.clean(f"{before}{form}{after}")
        assert cleaned.count(REDACTED) >= 1 or form in REDACTED


@given(PLAIN)
def test_plain_values_keep_their_shape(value: object) -> None:
    assert json.dumps(Redactor(["never-there"]).clean_all(value)) == json.dumps(value)
