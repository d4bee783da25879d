"""Settings: declared once, refused loudly."""

from __future__ import annotations

import pytest

from scheduler.errors import StartupError
from scheduler.settings import Settings, load, without_secrets


def test_the_command_line_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAIT_HTTP_PORT", "9001")

    assert load().http_port == 9001
    assert load({"http_port": 9002}).http_port == 9002


def test_an_option_that_was_not_given_leaves_the_default() -> None:
    assert load({"http_port": None}).http_port == 8700


def test_an_unknown_variable_is_named_with_those_that_exist(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PLAIT_HTTP_PROT", "9001")

    with pytest.raises(StartupError, match=r"PLAIT_HTTP_PROT; known are: .*PLAIT_HTTP_PORT"):
        load()


def test_every_malformed_setting_is_named_at_once() -> None:
    with pytest.raises(StartupError, match=r"http_port.*'many'.*lease_ttl_s.*-1"):
        load({"http_port": "many", "lease_ttl_s": -1})


def test_models_are_separated_by_commas() -> None:
    assert load({"models": "demo, minilm"}).models == ("demo", "minilm")


def test_a_child_process_reads_back_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = load({"models": "a,b", "http_port": 1234})
    for name, value in parent.to_environment().items():
        monkeypatch.setenv(name, value)

    child = load()

    assert child.models == parent.models
    assert child.http_port == parent.http_port
    assert child.state == parent.state.absolute()


def test_a_key_is_neither_shown_nor_handed_to_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAIT_API_KEY", "plait_secret")

    settings = load()

    assert settings.api_key.get_secret_value() == "plait_secret"
    assert "secret" not in repr(settings)
    assert "PLAIT_API_KEY" not in settings.to_environment()


def test_the_store_s_password_is_shown_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgresql://joe:hidden@db/plait"
    monkeypatch.setenv("PLAIT_STORE", url)

    settings = load()

    assert settings.store.get_secret_value() == url
    assert "hidden" not in repr(settings)
    assert "PLAIT_STORE" not in settings.to_environment()
    assert without_secrets({"PLAIT_STORE": url, "PATH": "/bin"}) == {"PATH": "/bin"}


@pytest.mark.parametrize("url", ["mysql://joe:hidden@db/x", "joe:hidden@db", "/var/hidden.sqlite"])
def test_a_store_that_is_none_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(StartupError, match=r"store: .*begins with postgresql://") as caught:
        load({"store": url})

    assert "hidden" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_every_setting_has_a_sentence() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
