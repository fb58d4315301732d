from __future__ import annotations

import pytest

from gptoss_dist.errors import ConfigError
from gptoss_dist.server.keys import ApiKeys, is_loopback, keys_for


def test_the_environment_holds_the_keys():
    keys = keys_for("0.0.0.0", False, {"GPTOSS_API_KEYS": " one, two ,,"})
    assert keys.required
    assert keys.accepts("Bearer one")
    assert keys.accepts("bearer two")
    for wrong in (None, "", "one", "Bearer", "Bearer ", "Bearer on", "Bearer one two", "Basic one", "Bearer \udcff"):
        assert not keys.accepts(wrong)


def test_without_keys_everybody_on_this_machine_may_ask():
    assert keys_for("127.0.0.1", False, {}).accepts(None)
    assert not keys_for("::1", False, {}).required
    assert keys_for("0.0.0.0", True, {}).accepts(None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_others_need_a_key(host):
    with pytest.raises(ConfigError, match="GPTOSS_API_KEYS=KEY"):
        keys_for(host, False, {"GPTOSS_API_KEYS": " , "})


@pytest.mark.parametrize("key", ["schlüssel", "two words", "a\tb"])
def test_a_key_that_no_client_can_send_is_refused_without_being_shown(key):
    with pytest.raises(ConfigError, match="GPTOSS_API_KEYS: key 2 of 2") as refused:
        keys_for("127.0.0.1", False, {"GPTOSS_API_KEYS": f"fine,{key}"})
    assert key not in str(refused.value)


def test_loopback_is_told_by_address_or_name():
    assert [host for host in ("localhost", "127.8.9.1", "::1", "0.0.0.0", "a.b", "") if is_loopback(host)] == [
        "localhost",
        "127.8.9.1",
        "::1",
    ]


def test_no_key_is_shown():
    assert "secret" not in repr(ApiKeys(["secret"]))
