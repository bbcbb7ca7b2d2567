"""`proxy_config` over HTTP: created, changed, shown, refused. Wire protocol, sections 1.8 and 1.14."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from sandbox_aio.server.egress.config import NO_RULES, parse_proxy_config
from sandbox_aio.server.errors import InvalidFieldsError

if TYPE_CHECKING:
    import httpx

    from sandbox_aio.server.serve import Server

pytestmark = pytest.mark.anyio

SECRET = "s3cr3t-value"


def rule(**members: Any) -> dict[str, Any]:
    header = {"name": "Authorization", "type": "opaque", "value": SECRET}
    return {"name": "api", "match_hosts": ["api.example"], "headers": [header], **members}


async def test_a_secret_goes_in_and_never_comes_out(http: httpx.AsyncClient, server: Server) -> None:
    created = await http.post("/boxes", json={"name": "one", "proxy_config": {"rules": [rule()]}})
    assert created.status_code == 201, created.text
    shown = created.json()["proxy_config"]["rules"][0]
    assert shown["headers"] == [{"name": "Authorization", "type": "opaque", "is_set": True}]
    for path in ("/boxes", "/boxes/one"):
        assert SECRET not in (await http.get(path)).text
    assert SECRET not in repr(server.registry.get("one"))
    assert server.registry.get("one").settings.proxy_config.rules[0].headers[0].value == SECRET


async def test_rules_are_replaced_and_opaque_values_carried_over(http: httpx.AsyncClient, server: Server) -> None:
    await http.post("/boxes", json={"name": "one", "proxy_config": {"rules": [rule()]}})
    kept = rule(headers=[{"name": "authorization", "type": "opaque", "is_set": True}], match_hosts=["other.example"])
    answer = await http.patch("/boxes/one", json={"proxy_config": {"rules": [kept]}})
    assert answer.status_code == 200, answer.text
    (now,) = server.registry.get("one").settings.proxy_config.rules
    assert (now.headers[0].value, now.hosts[0].text) == (SECRET, "other.example")
    unknown = rule(name="new", headers=[{"name": "authorization", "type": "opaque", "is_set": True}])
    answer = await http.patch("/boxes/one", json={"proxy_config": {"rules": [unknown]}})
    assert answer.status_code == 422
    assert "no value of this rule" in answer.text
    assert server.registry.get("one").settings.proxy_config.rules == (now,)


async def test_updates(http: httpx.AsyncClient) -> None:
    await http.post("/boxes", json={"name": "one"})
    before = (await http.get("/boxes/one")).json()
    assert (await http.patch("/boxes/one", json={})).json() == before
    answer = await http.patch("/boxes/one", json={"idle_ttl_seconds": 60, "delete_after_stop_seconds": 5})
    assert (answer.json()["idle_ttl_seconds"], answer.json()["delete_after_stop_seconds"]) == (60, 5)
    for body, status in (
        ({"run_config": {}}, 501),
        ({"name": "two"}, 501),
        ({"idle_ttl_seconds": -1}, 422),
        ({"idle_ttl_seconds": True}, 422),
        ({"what": 1}, 422),
        ([], 400),
    ):
        assert (await http.patch("/boxes/one", json=body)).status_code == status, body
    assert (await http.patch("/boxes/none", json={})).status_code == 404


async def test_a_stopped_sandbox_keeps_its_new_rules(http: httpx.AsyncClient) -> None:
    await http.post("/boxes", json={"name": "one"})
    await http.post("/boxes/one/stop")
    rules = {"rules": [], "access_control": {"deny_list": ["evil.example"]}}
    assert (await http.patch("/boxes/one", json={"proxy_config": rules})).status_code == 200
    assert (await http.get("/boxes/one")).json()["proxy_config"] == rules


async def test_no_change_while_provisioning(http: httpx.AsyncClient, server: Server) -> None:
    server._runtime.gate.clear()  # type: ignore[attr-defined]
    await http.post("/boxes", json={"name": "one", "wait_for_ready": False})
    answer = await http.patch("/boxes/one", json={"proxy_config": {"rules": []}})
    server._runtime.gate.set()  # type: ignore[attr-defined]
    assert (answer.status_code, answer.json()["detail"]["error"]) == (400, "InvalidRequest")


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ([], "proxy_config"),
        ({"what": 1}, "proxy_config.what"),
        ({"callbacks": [{"url": "https://a"}]}, "proxy_config.callbacks"),
        ({"rules": [{"name": "a", "type": "aws", "aws": {"role_arn": "x"}}]}, "proxy_config.rules.0.aws"),
        ({"rules": [{"name": "a", "type": "attribution", "headers": []}]}, "proxy_config.rules.0.type"),
        ({"rules": [rule(rewrite={"port": 1})]}, "proxy_config.rules.0.rewrite"),
        ({"rules": [rule(match_hosts=[])]}, "proxy_config.rules.0.match_hosts"),
        ({"rules": [rule(match_hosts=["a b"])]}, "proxy_config.rules.0.match_hosts.0"),
        ({"rules": [rule(match_paths=["/a/*/b"])]}, "proxy_config.rules.0.match_paths.0"),
        ({"rules": [rule(match_headers=["A"])]}, "proxy_config.rules.0.match_headers.0"),
        ({"rules": [rule(match_port=0)]}, "proxy_config.rules.0.match_port"),
        ({"rules": [rule(match_scheme="ftp")]}, "proxy_config.rules.0.match_scheme"),
        ({"rules": [rule(enabled="yes")]}, "proxy_config.rules.0.enabled"),
        ({"rules": [rule(name="")]}, "proxy_config.rules.0.name"),
        ({"rules": [rule(), rule()]}, "proxy_config.rules"),
        ({"rules": [rule(env_vars={"A=": "1"})]}, "proxy_config.rules.0.env_vars"),
        ({"access_control": {"allow_list": [], "deny_list": []}}, "proxy_config.access_control"),
        ({"access_control": {"allow_list": ["~("]}}, "proxy_config.access_control.allow_list.0"),
    ],
)
def test_what_is_refused_is_named(config: object, field: str) -> None:
    with pytest.raises(InvalidFieldsError) as caught:
        parse_proxy_config(config)
    assert field in [detail.field for detail in caught.value.details]
    assert SECRET not in caught.value.body().decode()


@pytest.mark.parametrize(
    "header",
    [
        {"name": "X-A", "type": "workspace_secret", "value": "{KEY}"},
        {"name": "X-A", "type": "opaque", "value": "a\r\nX-B: c"},
        {"name": "X-A", "type": "plaintext", "value": "a\0"},
        {"name": "X-A: b\r\nX-B", "type": "plaintext", "value": "a"},
        {"name": "Host", "type": "plaintext", "value": "a"},
        {"name": "Transfer-Encoding", "type": "plaintext", "value": "chunked"},
        {"name": "Proxy-Authorization", "type": "plaintext", "value": "a"},
        {"name": "X-A", "type": "plaintext", "value": ""},
        {"name": "X-A", "type": "other", "value": "a"},
        {"name": "X-A", "type": "opaque", "value": 1},
    ],
)
def test_headers_that_are_refused(header: dict[str, Any]) -> None:
    with pytest.raises(InvalidFieldsError, match=r"headers\.0"):
        parse_proxy_config({"rules": [rule(headers=[header])]})


def test_nothing_is_the_same_as_no_rules() -> None:
    assert parse_proxy_config({}) == parse_proxy_config({"rules": [], "no_proxy": ["a"]}) == NO_RULES
    assert NO_RULES.shown() is None


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("/v1/runs", ["/v1/runs"], ["/v1/runs/1"]),
        ("/v1/*", ["/v1", "/v1/a/b", "/v10"], ["/v2", "/v1/../v2", "/v1//a", "/v1/%2e%2e/a", "/v1/a\\b"]),
        ("*/runs", ["/v1/runs", "/v1/xruns"], ["/v1/run"]),
        ("*", ["/", "/a/b"], []),
    ],
)
def test_paths(pattern: str, yes: list[str], no: list[str]) -> None:
    config = parse_proxy_config({"rules": [rule(match_paths=[pattern])]})
    assert [path for path in yes if config.rule_for("https", "api.example", 443, path, {}) is None] == []
    assert [path for path in no if config.rule_for("https", "api.example", 443, path, {}) is not None] == []


def test_the_first_rule_that_matches_is_followed() -> None:
    first = rule(name="first", match_headers=["authorization: Bearer b"], match_port=443, match_scheme="https")
    config = parse_proxy_config({"rules": [rule(name="off", enabled=False), first, rule(name="last")]})

    def chosen(scheme: str, port: int, **headers: list[str]) -> str | None:
        found = config.rule_for(scheme, "api.example", port, "/", headers)
        return found.name if found is not None else None

    assert chosen("https", 443, authorization=["Bearer b"]) == "first"
    assert chosen("https", 443, authorization=["Bearer c"]) == "last"
    assert chosen("http", 443, authorization=["Bearer b"]) == "last"
    assert chosen("https", 444, authorization=["Bearer b"]) == "last"
    assert config.rule_for("https", "api.example.evil", 443, "/", {}) is None
    assert not config.intercepts("other.example", 443)
