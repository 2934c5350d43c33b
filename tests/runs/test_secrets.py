"""No form in which an address can hold a secret passes the mask, and addresses without one pass unchanged."""

from __future__ import annotations

import json

import pytest

from saebench.runs.secrets import has_secret, is_masked, mask, mask_all, secrets_of

PW = "Xq7secret"
WITH_SECRET = [
    (f"http://me:{PW}@host:5000", "http://***@host:5000"),
    (f"http://me:p@{PW}@host", "http://***@host"),
    (f"http://me:{PW}@{PW}@host/path", "http://***@host/path"),
    (f"https://{PW}@host", "https://***@host"),
    (f"https://{PW}:@host", "https://***@host"),
    (f"https://{PW}:x-oauth-basic@host", "https://***@host"),
    (f"https://:{PW}@host", "https://***@host"),
    (f"https://me:{PW}%40{PW}@host", "https://***@host"),
    (f"https://me:a/{PW}?{PW}#{PW}@host", "https://***@host"),
    (f"http://me:5000/{PW}@host", "http://***@host"),
    (f"https://me:443/{PW}@host:5000/x", "https://***@host:5000/x"),
    (f"http://me:{PW} {PW}@host:5000", "http://***@host:5000"),
    (f"http://me:two words {PW}@host", "http://***@host"),
    (f"postgresql://me:my {PW}@db/x", "postgresql://me:***@db/x"),
    (f"postgresql://me:{PW}@db:5432/x", "postgresql://me:***@db:5432/x"),
    (f"postgresql+psycopg2://me:a/{PW}@db/x?sslmode=require", "postgresql+psycopg2://me:***@db/x?sslmode=require"),
    (f"postgresql://me:5432/{PW}@db/x", "postgresql://me:***@db/x"),
    (f"mysql+pymysql://me:{PW}@{PW}@db/x", "mysql+pymysql://me:***@db/x"),
    (f"mysql://me:a@b/{PW}@db/x", "mysql://me:***@db/x"),
    (f"http://host/?password={PW}", "http://host/?password=***"),
    (f"http://host/a?x=1&token={PW}&y=2", "http://host/a?x=1&token=***&y=2"),
    (f"http://host/a?%74oken={PW}", "http://host/a?%74oken=***"),
    (f"http://host?api_key={PW};access-key={PW}", "http://host?api_key=***;access-key=***"),
    (f"http://host/#access_token={PW}", "http://host/#access_token=***"),
    (f"https://b.s3.amazonaws.com/x?X-Amz-Signature={PW}", "https://b.s3.amazonaws.com/x?X-Amz-Signature=***"),
    (f"postgresql:///x?user=me&password={PW}", "postgresql:///x?user=me&password=***"),
    (f"mssql+pyodbc:///?odbc_connect=PWD%3D{PW}", "mssql+pyodbc:///?odbc_connect=***"),
    (f"PostgreSQL://me:{PW}@db/x", "PostgreSQL://me:***@db/x"),
]
WITHOUT = [
    "http://host:5000", "http://127.0.0.1:5000/#/experiments/1", "https://host/path@v2",
    "http://host: cannot be reached (me@example.com)", "http://host:5000?x=a@b",
    "sqlite:////home/a@b/my p/mlflow.db", "sqlite:///C:/a@b/mlflow.db", "sqlite:///mlflow.db", "postgresql:///x",
    "postgresql://me@db/x", "hf://datasets/a/b@main/x.csv", "s3://bucket/key", "file:///a@b", "databricks://profile",
    "me@example.com: hello", "a://b", "http://host/?monkey=1&page=2&keys=3&compass=n&author=a&tokenizer=b",
    "data.model: a/b", "",
]  # fmt: skip


@pytest.mark.parametrize(("address", "shown"), WITH_SECRET)
def test_secrets_are_masked(address: str, shown: str) -> None:
    assert mask(address) == shown
    assert mask(f"tracking {address}: no answer ({address})") == f"tracking {shown}: no answer ({shown})"
    assert mask(f'{{"uri": "{address}"}}') == f'{{"uri": "{shown}"}}'
    assert has_secret(address)
    assert mask(shown) == shown
    assert not has_secret(shown)
    assert is_masked(shown)


@pytest.mark.parametrize("text", WITHOUT)
def test_what_has_no_secret_stays_as_it_is(text: str) -> None:
    assert mask(text) == text
    assert not is_masked(text)


def test_every_string_of_a_spec_is_masked() -> None:
    spec = {"tracking": {"uri": f"http://a:{PW}@h"}, "data": {"files": [f"https://h/a.csv?token={PW}", 3, None]}}
    assert mask_all(spec) == {
        "tracking": {"uri": "http://***@h"}, "data": {"files": ["https://h/a.csv?token=***", 3, None]}
    }  # fmt: skip


@pytest.mark.parametrize("address", [address for address, _ in WITH_SECRET])
def test_the_secret_of_a_known_address_is_masked_wherever_it_stands(address: str) -> None:
    """A driver takes an address apart, and says what it made of the parts."""
    said = f'could not translate host name "{PW}@host" to address; login {PW} failed'
    assert PW not in mask(said, address)
    assert all(len(secret) > 2 for secret in secrets_of(address))


def test_a_password_with_spaces_is_masked_in_a_message_and_in_a_folded_spec() -> None:
    address = f"http://me:first {PW} third@host:5000"
    assert mask(f"tracking {address}: no answer") == "tracking http://***@host:5000: no answer"
    assert PW not in mask(f"tracking:\n  uri: http://me:first\n    {PW} third@host:5000\n", address)
    assert mask("http://host:5000 is away, write to me@example.com", address).startswith("http://")


def test_a_short_part_of_a_secret_does_not_blank_a_message() -> None:
    assert mask("a port is needed", "postgresql://me:a@b/x") == "a port is needed"


@pytest.mark.parametrize("mark", list("'\"`<>|\\{}()[],^!"))
@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_a_password_may_hold_any_mark(scheme: str, mark: str) -> None:
    """The mark ends an address in a sentence; an address alone is masked whole, and its secret wherever it is."""
    address = f"{scheme}://me:{PW}{mark}{PW}@host/db"
    assert PW not in mask(address)
    assert mask(address).endswith("***@host/db")
    assert PW not in mask(f"{scheme}://host/db?password={PW}{mark}{PW}&x=1")
    for text in (json.dumps({"uri": address}), f"uri: '{address.replace(chr(39), 2 * chr(39))}'", f"uri: {address}"):
        assert PW not in mask(text, address)


def test_many_addresses_take_linear_time() -> None:
    text = f"http://me:{PW}@host " * 20_000 + "http://" + ":@/" * 50_000
    assert PW not in mask(text)
