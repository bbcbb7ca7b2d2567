"""Which hosts are hosts, which addresses are public, and who may be reached. Wire protocol, section 1.14."""

from __future__ import annotations

import ipaddress
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_aio.server.egress.addresses import Address, HostError, is_own, is_public, parse_authority, parse_host
from sandbox_aio.server.egress.patterns import MAX_PATTERN, Pattern, PatternError
from sandbox_aio.server.egress.policy import AccessControl, OperatorPolicy, Refused, parse_entry

NOT_PUBLIC = [
    *("0.0.0.0", "10.1.2.3", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.9.9.9", "168.63.129.16"),
    *("169.254.169.254", "172.16.0.1", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1"),
    *("203.0.113.9", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe"),
    *("64:ff9b:1::1", "2001::1", "2001:db8::1", "2002:7f00:1::", "2002:a00:1::", "3fff::1", "5f00::1"),
    *("fc00::1", "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1"),
]


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_what_is_not_public(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", ["1.1.1.1", "93.184.215.14", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_what_is_public(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


def test_our_own_addresses_are_known() -> None:
    assert is_own(ipaddress.ip_address("127.0.0.1"))
    assert not is_own(ipaddress.ip_address("8.8.8.8"))


@pytest.mark.parametrize(
    "text",
    [
        *("2130706433", "0x7f000001", "0x7f.0.0.1", "127.1", "0177.0.0.1", "010.0.0.1", "1.2.3.4.5", "127.0.0.256"),
        *("", ".", "a..b", "-a.example", "a-.example", "exa mple", "a\r\nb", "a\0b", "ex\u00e4mple.org", "a/b", "u@h"),
        *("[::1", "[::g]", "[fe80::1%eth0]", "::1", "a" * 64, "a." * 127 + "a", "[127.0.0.1]", "1.2.3.0x4"),
    ],
)
def test_what_is_no_host(text: str) -> None:
    with pytest.raises(HostError):
        parse_host(text)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("Example.ORG.", "example.org"),
        ("[::1]", "::1"),
        ("[0:0::A]", "::a"),
        ("1.2.3.4", "1.2.3.4"),
        ("1.2.3.4.", "1.2.3.4"),
        ("_a.b", "_a.b"),
    ],
)
def test_hosts_have_one_spelling(text: str, host: str) -> None:
    assert parse_host(text) == host


def test_authorities() -> None:
    assert parse_authority("[::1]:80") == ("::1", 80)
    assert parse_authority("a.b", default_port=80) == ("a.b", 80)
    assert parse_authority("[::1]", default_port=80) == ("::1", 80)
    for text in ("a", "a:", "a:0", "a:65536", "a:+1", "a:1:2", "::1:80", "a:\u0661", "a:080000", "u:p@a:80"):
        with pytest.raises(HostError):
            parse_authority(text)


@pytest.mark.parametrize(
    ("entry", "yes", "no"),
    [
        ("example.com", ["example.com:443"], ["www.example.com:443", "example.com.evil:443", "xexample.com:1"]),
        ("Example.com.", ["example.com:1"], []),
        ("*.example.com", ["a.example.com:1", "a.b.example.com:1"], ["example.com:1", "example.com.evil:1"]),
        ("a*b*c.d", ["abc.d:1", "aXbYc.d:1"], ["ab.d:1", "acb.d:1"]),
        ("*", ["any.host:1"], []),
        ("example.com:443", ["example.com:443"], ["example.com:80"]),
        (r"~api\d+\.example\.com", ["api12.example.com:1"], ["api.example.com:1", "api1.example.com.evil:1"]),
        (r"~^(a|b)\.c$", ["a.c:1", "b.c:1"], ["ab.c:1"]),
    ],
)
def test_entries_speak_of_names(entry: str, yes: list[str], no: list[str]) -> None:
    parsed = parse_entry(entry)
    assert [text for text in yes if not parsed.covers_name(*parse_authority(text))] == []
    assert [text for text in no if parsed.covers_name(*parse_authority(text))] == []


def test_entries_speak_of_addresses() -> None:
    for entry, inside, outside in (
        ("1.2.3.0/24", "1.2.3.9", "1.2.4.1"),
        ("1.2.3.4", "1.2.3.4", "1.2.3.5"),
        ("1.2.3.4", "::ffff:1.2.3.4", "::ffff:1.2.3.5"),
        ("2606::/16", "2606::1", "2607::1"),
        ("2606::1", "2606::1", "2606::2"),
        ("[2606::1]:443", "2606::1", "2606::2"),
    ):
        assert parse_entry(entry).covers_address(ipaddress.ip_address(inside), 443)
        assert not parse_entry(entry).covers_address(ipaddress.ip_address(outside), 443)
    assert not parse_entry("[2606::1]:443").covers_address(ipaddress.ip_address("2606::1"), 80)


@pytest.mark.parametrize(
    "text", ["", "a b", "1.2.3.4/33", "1.2.3.4/8", "a:99999", "~(", "~" + "a" * 500, "a/b", "127.1"]
)
def test_entries_that_are_wrong(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_entry(text)


OPEN = OperatorPolicy()
PUBLIC, PRIVATE = ipaddress.ip_address("8.8.8.8"), ipaddress.ip_address("10.0.0.1")


def judge(policy: OperatorPolicy, own: AccessControl, host: str, address: Address, port: int = 443) -> str:
    """The rule that allows it, or `no: ` and the one that does not."""
    try:
        verdict = policy.judge_name(host, port, own)
        return policy.judge_address(host, port, address, own, verdict)
    except Refused as refused:
        return f"no: {refused.rule}"


def control(mode: str, *entries: str) -> AccessControl:
    return AccessControl(mode=mode, entries=[parse_entry(entry) for entry in entries])  # type: ignore[arg-type]


def test_judgements() -> None:
    everybody = AccessControl()
    assert judge(OPEN, everybody, "a.b", PUBLIC) == "open"
    assert judge(OPEN, everybody, "a.b", PRIVATE) == "no: private-address"
    vouched = OperatorPolicy(allowed=[parse_entry("a.b:443"), parse_entry("10.0.0.0/8")])
    assert judge(vouched, everybody, "a.b", PRIVATE) == "operator:a.b:443"
    assert judge(vouched, everybody, "a.b", PRIVATE, 80) == "no: private-address"
    assert judge(vouched, everybody, "10.0.0.1", PRIVATE) == "operator:10.0.0.0/8"
    closed = OperatorPolicy(open=False, allowed=[parse_entry("a.b")])
    assert judge(closed, everybody, "c.d", PUBLIC) == "no: operator:closed"
    assert judge(closed, everybody, "a.b", PUBLIC) == "operator:a.b"
    assert judge(closed, control("allow", "c.d"), "c.d", PUBLIC) == "no: operator:closed"


def test_a_sandbox_narrows_and_never_widens() -> None:
    assert judge(OPEN, control("allow", "a.b"), "a.b", PUBLIC) == "allow:a.b"
    assert judge(OPEN, control("allow", "a.b"), "c.d", PUBLIC) == "no: allow_list"
    assert judge(OPEN, control("allow", "a.b"), "a.b", PRIVATE) == "no: private-address"
    assert judge(OPEN, control("allow", "10.0.0.0/8"), "a.b", PRIVATE) == "no: private-address"
    assert judge(OPEN, control("allow", "8.8.8.0/24"), "a.b", PUBLIC) == "allow:8.8.8.0/24"
    assert judge(OPEN, control("allow", "9.9.9.0/24"), "a.b", PUBLIC) == "no: allow_list"
    assert judge(OPEN, control("allow"), "a.b", PUBLIC) == "no: allow_list"
    assert judge(OPEN, control("deny", "a.b"), "a.b", PUBLIC) == "no: deny:a.b"
    assert judge(OPEN, control("deny", "8.8.0.0/16"), "a.b", PUBLIC) == "no: deny:8.8.0.0/16"
    assert judge(OPEN, control("deny", "a.b"), "c.d", PUBLIC) == "open"


@pytest.mark.parametrize("text", ["(a+)+$", "(a|a)*$", "(a*)*b", "a{0,99}a{0,99}b", "((a?){20}){20}"])
def test_no_pattern_takes_long(text: str) -> None:
    pattern = Pattern(text)
    began = time.monotonic()
    pattern.matches("a" * 253 + "!")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "text",
    [
        "(",
        ")",
        "a)",
        "[a",
        "*a",
        "a**",
        "a{1000}",
        "((a{200}){200})",
        r"\1",
        r"\D",
        "(?=a)",
        "(?P<x>a)",
        "a^b",
        "a{2,1}",
        "\\",
        "x" * (MAX_PATTERN + 1),
        "(" * 30 + ")" * 30,
        "[b-a]",
    ],
)
def test_patterns_that_are_refused(text: str) -> None:
    with pytest.raises(PatternError):
        Pattern(text)


def test_what_repeats_nothing_is_built_at_once() -> None:
    began = time.monotonic()
    assert Pattern("(((((){999}){999}){999}){999})").matches("")
    assert time.monotonic() - began < 5


PIECES = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", "(a|b)", "(?:ab)", r"\.", r"\d", "[0-9a]"])
REPEATS = st.sampled_from(["", "*", "+", "?", "{2}", "{1,}", "{0,2}"])


@given(st.lists(st.tuples(PIECES, REPEATS), max_size=5), st.text("ab.1", max_size=8))
def test_patterns_mean_what_they_mean_to_python(parts: list[tuple[str, str]], text: str) -> None:
    pattern = "".join(piece + repeat for piece, repeat in parts)
    assert Pattern(pattern).matches(text) == bool(re.fullmatch(pattern, text))
