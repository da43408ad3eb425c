"""No URL of a setting has a password, and no message prints one."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfl.config.load import read_run, validated
from sfl.config.service import ServiceSettings
from sfl.errors import ConfigError
from sfl.report.elsewhere import fetched
from sfl.urls import hidden

DATABASES = [
    "postgresql+psycopg://sfl:hid/den@db/sfl",
    "postgresql+psycopg://sfl:hid?x=hidden@db/sfl",
    "postgresql://sfl:hid@hidden@db/sfl",
    "postgresql://:hidden@db/sfl",
    "postgresql://sfl:${NAME}hidden@db/sfl",
    "postgresql://sfl:hid%2Fden@db/sfl",
    "postgresql://db/sfl?password=hidden",
    "postgresql://db/sfl?user=x&passw%6Frd=hidden",
    "postgresql://sfl@db/sfl?sslmode=verify-full&sslpassword=hidden",
    "postgresql://db/sfl?PASSWORD=${NAME}hidden",
    "postgresql://db/sfl?oauth_client_secret=hidden&x=1",
    "postgresql://db/sfl?scram_client_key=hidden",
]
REST = '[model]\npath = "m"\n[[devices]]\nname = "d0"\n'
STORES = ["s3://AKIA:hid/den@bucket/x", "s3://bucket/x?secret=hidden"]
OTHERS = ["sfl:hidden@db/sfl", "postgresql:/sfl:hidden@db/sfl", "mysql://sfl:hid/den@db/sfl"]
SETTINGS = [
    *(("journal", url) for url in DATABASES + OTHERS),
    *(("artifacts", url) for url in STORES + OTHERS),
    *(("jurnal", url) for url in DATABASES + STORES),
]


@pytest.mark.parametrize(("key", "url"), SETTINGS)
def test_a_password_is_refused_and_not_printed(key: str, url: str) -> None:
    for said in (_refused_run(f'[cloud]\n{key} = "{url}"'), _refused_service(key, url)):
        assert "hid" not in said, said
        assert "\n" not in said and key in said


def _refused_run(section: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_run(f"{REST}{section}")
    return str(caught.value)


def _refused_service(key: str, url: str) -> str:
    with pytest.raises(ConfigError) as caught:
        validated(ServiceSettings, {key: url}, "service.")
    return str(caught.value)


@pytest.mark.parametrize("url", DATABASES)
def test_an_option_is_not_printed_either(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has a password") as caught:
        fetched("t", url, "s3://bucket", tmp_path)
    assert "hid" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://sfl:${NAME}@db:5432/sfl?sslmode=verify-full&passfile=/etc/pass",
        "postgresql://sfl@[::1]:5432/sfl?sslkey=/etc/key",
        "postgresql://db/sfl",
        "postgresql:///sfl?host=/run/postgresql",
    ],
)
def test_what_names_a_password_is_taken(url: str) -> None:
    read = read_run(f'{REST}[cloud]\njournal = "{url}"')
    assert read.cloud.journal == url == hidden(url)


def test_folders_may_have_any_name() -> None:
    url = "file:///home/me@work/a:b@c"
    read = read_run(f'{REST}[cloud]\nartifacts = "{url}"')
    assert read.cloud.artifacts == url == hidden(url)


def test_what_stands_in_a_table_is_not_printed() -> None:
    error = ConfigError("cloud", {"journal": "postgresql://a:hidden@db"}, "is wrong", "Mend it.")
    assert "hidden" not in str(error) and "a:***@db" in str(error)
