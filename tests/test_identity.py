"""Tokens of those who post events, by a real issuer over HTTP and the real servers."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from metrics import identity
from metrics.errors import Unauthorized, Unavailable
from metrics.identity import Identity
from tests.servers_http import (
    OwnServer,
    ParliamentServer,
    Server,
    attributes,
    feedback,
    outcomes,
    until,
)

AUDIENCE = "feedback-metrics.seldon"
MODEL = "ns/iris/default/classifier"


class Issuer:
    """An OIDC issuer on loopback: discovery, keys, and tokens."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {}
        self.asked: list[str] = []
        self.down = False
        self.instead: dict[str, Any] = {}
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked.append(self.path)
                found = {**issuer.documents(), **issuer.instead}.get(self.path)
                body = found if isinstance(found, bytes) else json.dumps(found).encode()
                self.send_response(503 if issuer.down else 200 if found else 404)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.names_itself = self.url
        self.rotate("first")
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def documents(self) -> dict[str, Any]:
        """What it publishes."""
        public = []
        for id, key in self.keys.items():
            algorithm = jwt.get_algorithm_by_name("RS256" if id != "curve" else "ES256")
            public.append({**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": id})
        return {
            "/.well-known/openid-configuration": {
                "issuer": self.names_itself,
                "jwks_uri": f"{self.url}/keys",
            },
            "/keys": {"keys": public},
        }

    def rotate(self, id: str) -> None:
        """Sign with a new key from now on."""
        key: Any = ec.generate_private_key(ec.SECP256R1()) if id == "curve" else _rsa()
        self.keys[id] = key
        self.current = id

    def token(self, key: Any = None, algorithm: str = "", head: Any = None, **claims: Any) -> str:
        """A token for us, but for what is said otherwise."""
        said = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "system:serviceaccount:seldon:feedback-broker",
            "exp": time.time() + 600,
            **claims,
        }
        return jwt.encode(
            {name: value for name, value in said.items() if value is not None},
            key or self.keys[self.current],
            algorithm=algorithm or ("ES256" if self.current == "curve" else "RS256"),
            headers=head or {"kid": self.current},
        )

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()


def _rsa() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """An issuer of the test's own."""
    issuer = Issuer()
    yield issuer
    issuer.close()


def verifier(issuer: Issuer) -> Identity:
    """What verifies its tokens."""
    return Identity(AUDIENCE, issuer.url)


# --- a token --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["first", "curve"])
def test_a_good_token_is_verified_once(issuer: Issuer, kind: str) -> None:
    """Then it is known, until it expires; keys are asked for once."""
    issuer.rotate(kind)
    ours, moment = verifier(issuer), time.time()
    ours._now = lambda: moment
    for audience in (AUDIENCE, ["other", AUDIENCE]):
        header = f"Bearer {issuer.token(aud=audience)}"
        assert not ours.knows(header)
        ours.verify(header)
        assert ours.knows(header)
    assert len(issuer.asked) == 2
    moment += 601
    assert not ours.knows(header)


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "somebody-else"},
        {"aud": None},
        {"iss": "https://kubernetes.default.svc"},
        {"iss": None},
        {"exp": 1_700_000_000},
        {"exp": None},
        {"nbf": 4_000_000_000},
    ],
)
def test_claims_must_be_right(issuer: Issuer, claims: Any) -> None:
    """For us, by the issuer, in force."""
    with pytest.raises(Unauthorized, match=r"^authorization: "):
        verifier(issuer).verify(f"Bearer {issuer.token(**claims)}")


def test_clocks_may_differ_a_little(issuer: Issuer) -> None:
    """By less than half a minute."""
    verifier(issuer).verify(f"Bearer {issuer.token(exp=time.time() - 5)}")
    with pytest.raises(Unauthorized):
        verifier(issuer).verify(f"Bearer {issuer.token(exp=time.time() - 60)}")


def test_forgeries_are_refused(issuer: Issuer) -> None:
    """Another key under a known name, no signature, and the public key as a shared secret."""
    public = issuer.keys["first"].public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    pem = public.public_bytes(serialization.Encoding.PEM, form)

    def part(value: Any) -> bytes:
        raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        return base64.urlsafe_b64encode(raw).rstrip(b"=")

    claims = {"iss": issuer.url, "aud": AUDIENCE, "exp": time.time() + 600}
    text = part({"alg": "HS256", "kid": "first"}) + b"." + part(claims)
    shared = text + b"." + part(hmac.new(pem, text, hashlib.sha256).digest())
    none = part({"alg": "none", "kid": "first"}) + b"." + part(claims) + b"."
    good = issuer.token()
    head, _, signature = good.split(".")
    changed = f"{head}.{part({**claims, 'sub': 'me'}).decode()}.{signature}"
    ours = verifier(issuer)
    for token in (
        issuer.token(key=_rsa()),
        shared.decode(),
        none.decode(),
        changed,
        good[:-9],
        "x",
    ):
        with pytest.raises(Unauthorized):
            ours.verify(f"Bearer {token}")
    for header in ("", "Bearer", "Basic eDp5", good):
        with pytest.raises(Unauthorized, match="a bearer token is required"):
            ours.verify(header)
    ours.verify(f"bearer {good}")


def test_rotated_keys_are_asked_for(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a token names one; but names that nobody knows do not have the issuer asked always."""
    monkeypatch.setattr(identity, "COOLDOWN_SECONDS", 0.2)
    ours = verifier(issuer)
    ours.verify(f"Bearer {issuer.token()}")
    old = f"Bearer {issuer.token(jti='another')}"
    issuer.rotate("second")
    until(lambda: _verifies(ours, f"Bearer {issuer.token()}"))
    ours.verify(old)
    monkeypatch.setattr(identity, "COOLDOWN_SECONDS", 3600.0)
    nobody = f"Bearer {issuer.token(head={'kid': 'nobody'})}"
    until(lambda: not _verifies(ours, nobody) and ours._ask_from > time.monotonic() + 60)
    asked = len(issuer.asked)
    for _ in range(20):
        assert not _verifies(ours, f"Bearer {issuer.token(head={'kid': 'nobody'})}")
    assert len(issuer.asked) == asked


def _verifies(ours: Identity, header: str) -> bool:
    try:
        ours.verify(header)
    except Unauthorized:
        return False
    return True


def test_an_issuer_that_cannot_be_asked_is_no_verdict(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker is to try again; what is known stays known."""
    monkeypatch.setattr(identity, "RETRY_SECONDS", 0.0)
    ours = verifier(issuer)
    issuer.down = True
    with pytest.raises(Unavailable, match="cannot be asked"):
        ours.verify(f"Bearer {issuer.token()}")
    issuer.down, issuer.names_itself = False, "http://another"
    with pytest.raises(Unavailable, match="calls itself"):
        ours.verify(f"Bearer {issuer.token()}")
    issuer.names_itself = issuer.url
    ours.verify(f"Bearer {issuer.token()}")
    issuer.down = True
    ours.verify(f"Bearer {issuer.token(jti='x')}")


@pytest.mark.parametrize(
    "changed",
    [
        {"/keys": {"keys": []}},
        {"/keys": {"keys": ["x"]}},
        {"/keys": {"keys": [{"kty": "RSA", "kid": "first"}]}},
        {"/keys": {"error": "to be fixed"}},
        {"/keys": ["x"]},
        {"/keys": b"<html>"},
        {"/keys": None},
        {"/.well-known/openid-configuration": b"<html>"},
        {"/.well-known/openid-configuration": ["x"]},
        {"/.well-known/openid-configuration": {"issuer": "ours"}},
        {"/.well-known/openid-configuration": {"issuer": "ours", "jwks_uri": 1}},
        {"/.well-known/openid-configuration": {"issuer": "ours", "jwks_uri": "file:///keys"}},
    ],
)
def test_an_issuers_faults_are_no_verdict(
    issuer: Issuer, changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A good event is not dead-lettered because its issuer says nonsense for a while."""
    monkeypatch.setattr(identity, "RETRY_SECONDS", 0.0)
    ours = verifier(issuer)
    for path, document in changed.items():
        ours_named = isinstance(document, dict) and document.get("issuer") == "ours"
        issuer.instead[path] = {**document, "issuer": issuer.url} if ours_named else document
    with pytest.raises(Unavailable, match="cannot be asked"):
        ours.verify(f"Bearer {issuer.token()}")
    issuer.instead.clear()
    ours.verify(f"Bearer {issuer.token()}")


def test_those_who_wait_for_the_issuer_wait_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that hangs is asked once for all of them, not for one after the other."""
    monkeypatch.setattr(identity, "FETCH_SECONDS", 0.3)
    monkeypatch.setattr(identity, "RETRY_SECONDS", 3600.0)
    with socket.create_server(("127.0.0.1", 0)) as hanging, ThreadPoolExecutor(8) as pool:
        ours = Identity(AUDIENCE, f"http://127.0.0.1:{hanging.getsockname()[1]}")
        asked = [pool.submit(ours.verify, _unsigned()) for _ in range(8)]
        assert {type(future.exception()) for future in asked} == {Unavailable}
        hanging.accept()[0].close()
        hanging.setblocking(False)
        with pytest.raises(BlockingIOError):
            hanging.accept()


def test_a_known_key_waits_for_nobody(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the issuer is asked for another, as anyone can have it asked."""
    monkeypatch.setattr(identity, "COOLDOWN_SECONDS", 0.0)
    ours = verifier(issuer)
    ours.verify(f"Bearer {issuer.token()}")
    with ours._asking:
        ours.verify(f"Bearer {issuer.token(jti='x')}")


def test_made_up_keys_have_one_thread_wait(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """An issuer that hangs, and tokens of keys that nobody knows: the others are told at once."""
    monkeypatch.setattr(identity, "COOLDOWN_SECONDS", 0.0)
    ours = verifier(issuer)
    ours.verify(f"Bearer {issuer.token()}")
    nobody = f"Bearer {issuer.token(head={'kid': 'nobody'})}"
    with ours._asking:  # as one does that asks
        began = time.monotonic()
        for _ in range(20):
            with pytest.raises(Unavailable, match="is being asked"):
                ours.verify(nobody)
        assert time.monotonic() - began < 2
    assert not _verifies(ours, nobody)


def test_an_issuer_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time is for both documents as a whole, not for each byte."""
    monkeypatch.setattr(identity, "FETCH_SECONDS", 0.5)
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
                while not stop.wait(0.05):
                    connection.sendall(b" ")

        threading.Thread(target=drip, daemon=True).start()
        ours = Identity(AUDIENCE, f"http://127.0.0.1:{listener.getsockname()[1]}")
        asking = ThreadPoolExecutor(1).submit(ours.verify, _unsigned())
        assert type(asking.exception(20)) is Unavailable
        stop.set()


@pytest.mark.parametrize(
    "head", ["[" * 10_000, '{"alg":' + "[" * 10_000, "{}", "[]", "5", '{"alg":1}']
)
def test_a_hostile_head_is_a_401(issuer: Issuer, head: str) -> None:
    """Whatever a stranger puts there."""
    token = base64.urlsafe_b64encode(head.encode()).rstrip(b"=").decode() + ".e30.AAAA"
    with pytest.raises(Unauthorized):
        verifier(issuer).verify(f"Bearer {token}")
    with pytest.raises(Unauthorized):
        verifier(issuer).verify(f"Bearer {'x' * 100_000}")
    assert issuer.asked == []


def test_the_clusters_issuer_is_asked_as_the_pod(tmp_path: Path) -> None:
    """With its account's token and authority; no other issuer ever gets to see that token."""
    with pytest.raises(Unavailable, match="No such file"):
        Identity(AUDIENCE, "https://kubernetes.default.svc", account=tmp_path).verify(_unsigned())
    (tmp_path / "token").write_text("secret")
    for issuer in (
        "https://x",
        "http://a/kubernetes.default.svc",
        "https://kubernetes.default.svcx",
    ):
        found = Identity(AUDIENCE, issuer, account=tmp_path)._account_of_pod
        assert found() == ({}, None)


def _unsigned() -> str:
    return f"Bearer {jwt.encode({'aud': AUDIENCE}, _rsa(), algorithm='RS256')}"


# --- the servers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [OwnServer, ParliamentServer])
def test_over_http(kind: Any, tmp_path: Path, issuer: Issuer) -> None:
    """401 and nothing counted, not even as rejected; all but posting stays open."""
    variables = {"FEEDBACK_OIDC_AUDIENCE": AUDIENCE, "FEEDBACK_OIDC_ISSUER": issuer.url}
    with kind(tmp_path, FEEDBACK_MAX_BODY="4KiB", **variables) as server:
        for token in ("", "x", issuer.token(aud="another")):
            for body in (json.dumps(feedback()).encode(), b"nonsense", b"x" * 9000):
                answer = _post(server, token, body)
                assert answer.status == 401
                assert answer.headers["www-authenticate"] == "Bearer"
                assert answer.detail.startswith("authorization: ")
        assert series_of(server) == {}
        good = issuer.token()
        assert _post(server, good, json.dumps(feedback()).encode()).status == 200
        assert _post(server, good, b"nonsense").status == 400
        assert series_of(server) == {"accepted": 1.0, "duplicate": 0.0, "rejected": 1.0}
        issuer.rotate("second")
        issuer.down = True
        assert _post(server, good, json.dumps(feedback()).encode()).status == 200
        assert server.get("/").status == 200


def test_an_issuer_that_is_down_is_a_503(tmp_path: Path, issuer: Issuer) -> None:
    """A broker tries again, and does so with success when the issuer is back."""
    issuer.down = True
    variables = {"FEEDBACK_OIDC_AUDIENCE": AUDIENCE, "FEEDBACK_OIDC_ISSUER": issuer.url}
    with OwnServer(tmp_path, **variables) as server:
        body = json.dumps(feedback()).encode()
        answer = _post(server, issuer.token(), body)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        issuer.down = False
        until(lambda: _post(server, issuer.token(), body).status == 200)


def test_an_issuer_that_hangs_is_in_nobody_elses_way(tmp_path: Path) -> None:
    """Those who post wait for it, as many as like; scrapes and pages do not."""
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        url = f"http://127.0.0.1:{hanging.getsockname()[1]}"
        variables = {"FEEDBACK_OIDC_AUDIENCE": AUDIENCE, "FEEDBACK_OIDC_ISSUER": url}
        with OwnServer(tmp_path, **variables) as server, ThreadPoolExecutor(8) as pool:
            server.exposition()
            token = _unsigned().removeprefix("Bearer ")
            body = json.dumps(feedback()).encode()
            twins = [server.twin() for _ in range(8)]
            posts = [pool.submit(_post, each, token, body) for each in twins]
            held = hanging.accept()
            took = []
            while not all(post.done() for post in posts):
                began = time.monotonic()
                server.exposition()
                took.append(time.monotonic() - began)
            assert {post.result().status for post in posts} == {503}
            held[0].close()
            for each in twins:
                each.hang_up()
            assert max(took) < 2
            assert len(took) > 5


def _post(server: Server, token: str, body: bytes) -> Any:
    named = {f"ce-{name}": text for name, text in attributes(f"{time.time()}", MODEL).items()}
    bearer = {"authorization": f"Bearer {token}"} if token else {}
    return server.request(
        "POST", "/", {"content-type": "application/json", **named, **bearer}, body
    )


def series_of(server: Server) -> dict[str, float]:
    """Events by outcome, over all models."""
    found = outcomes(server.exposition())
    return found if any(found.values()) else {}
