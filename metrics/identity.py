"""Who posts events: verification of the OIDC token that a broker sends along, when asked for.

Only asymmetric signatures of the issuer's published keys are taken. Keys come by the issuer's
discovery document, and are asked for again when a token names one that is not known. What the
issuer does wrong is no verdict on a token: a broker is to try again.
Source: OpenID Connect Discovery 1.0; RFC 7519; Knative Eventing's sender identity.
"""

from __future__ import annotations

import json
import math
import ssl
import threading
import time as clock
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request

import jwt

from .errors import Unauthorized, Unavailable
from .outgoing import LEAST_SECONDS, opener, without_user
from .urls import redacted

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA")
LEEWAY_SECONDS = 30
"""How far the issuer's clock may be off."""
KEYS_SECONDS = 3600.0
"""How long keys are kept."""
COOLDOWN_SECONDS = 10.0
"""How long an unknown key has the issuer not asked again, once it answered."""
RETRY_SECONDS = 1.0
"""How long it is not asked again, once it failed to answer."""
FETCH_SECONDS = 5.0
"""How long the issuer may take for both of its documents."""
MAX_DOCUMENT = 1 << 20
"""Bytes of a document of the issuer's."""
MAX_TOKEN = 16384
"""Characters of a token."""
MAX_TOKENS = 1000
"""Verified tokens that are remembered until they expire."""

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds its own token and the cluster's certificate authority."""
IN_CLUSTER = "kubernetes.default.svc"

_NO_ANSWER = (
    OSError,
    HTTPException,
    LookupError,
    AttributeError,
    TypeError,
    ValueError,
    jwt.PyJWTError,
)
"""What asking for keys raises where the issuer is away, or says what is no answer."""


class Identity:
    """Verifies the bearer tokens of one audience and issuer. Thread-safe."""

    def __init__(
        self,
        audience: str,
        issuer: str,
        now: Callable[[], float] = clock.time,
        account: Path = ACCOUNT,
    ) -> None:
        self._audience = audience
        self._issuer = issuer
        self._now = now
        self._account = account
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._verified: dict[str, float] = {}
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._stale = self._ask_from = -math.inf
        self._failure: Exception | None = None

    def knows(self, authorization: str) -> bool:
        """Whether this header was verified before and still holds. Never waits."""
        return self._verified.get(authorization, 0.0) > self._now()

    def verify(self, authorization: str) -> None:
        """Return if the header's token is the issuer's, for us, and in force.

        May ask the issuer, so it waits. Raises Unauthorized, or Unavailable where the issuer
        cannot be asked.
        """
        if self.knows(authorization):
            return
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthorized("authorization: missing; a bearer token is required")
        if len(token) > MAX_TOKEN:
            raise Unauthorized("authorization: the token is too long")
        try:
            head = jwt.get_unverified_header(token)
            if head.get("alg") not in ALGORITHMS:
                raise Unauthorized("authorization: the token's algorithm is not taken")
            claims = jwt.decode(
                token,
                self._key(head.get("kid")),
                algorithms=ALGORITHMS,
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "aud", "iss"]},
            )
        except jwt.PyJWTError as error:
            raise Unauthorized(f"authorization: {error}") from None
        except RecursionError:
            raise Unauthorized("authorization: the token is nested too deeply") from None
        with self._lock:
            if len(self._verified) >= MAX_TOKENS:
                self._verified.clear()
            self._verified[authorization] = float(claims["exp"])

    def _key(self, id: str | None) -> jwt.PyJWK:
        """The issuer's key of that id. Those who wait for one answer of the issuer share it.

        Where others are known nobody waits: one thread asks, so that tokens which anyone can make
        up, with an issuer that hangs, do not take all threads from those whose keys are known.
        Raises Unauthorized where the issuer has no such key, Unavailable where it does not say.
        """
        if (key := self._fresh(id)) is not None:
            return key
        patience = 0.0 if clock.monotonic() < self._stale else 2 * FETCH_SECONDS
        if not self._asking.acquire(timeout=patience):
            raise Unavailable("the issuer of tokens is being asked for its keys")
        try:
            if (key := self._fresh(id)) is None and clock.monotonic() >= self._ask_from:
                try:
                    self._keys, self._failure = self._published(), None
                    self._stale = clock.monotonic() + KEYS_SECONDS
                    self._ask_from = clock.monotonic() + COOLDOWN_SECONDS
                except _NO_ANSWER as error:
                    self._failure = error
                    self._ask_from = clock.monotonic() + RETRY_SECONDS
                key = self._fresh(id)
            if key is not None:
                return key
            if self._failure is not None:
                raise Unavailable(f"the issuer of tokens cannot be asked: {self._failure}")
            raise Unauthorized("authorization: the issuer has no key of the token's")
        finally:
            self._asking.release()

    def _fresh(self, id: str | None) -> jwt.PyJWK | None:
        return self._keys.get(id) if clock.monotonic() < self._stale else None

    def _published(self) -> dict[str | None, jwt.PyJWK]:
        """The keys for signatures that the issuer names now, by id."""
        headers, context = self._account_of_pod()

        ends = clock.monotonic() + FETCH_SECONDS

        def document(url: str) -> Any:
            place, user = without_user(url)
            if urlsplit(place).scheme not in ("http", "https"):
                raise ValueError(f"its keys are at {redacted(url)!r}")
            request = Request(place, headers={**headers, **user})
            left = max(LEAST_SECONDS, ends - clock.monotonic())
            with opener(context).open(request, timeout=left) as answer:
                return json.loads(answer.read(MAX_DOCUMENT))

        found = document(f"{self._issuer.rstrip('/')}/.well-known/openid-configuration")
        if found["issuer"] != self._issuer:
            raise ValueError(f"it calls itself {redacted(str(found['issuer']))!r}")
        keys = jwt.PyJWKSet.from_dict(document(found["jwks_uri"])).keys
        return {key.key_id: key for key in keys if key.public_key_use in ("sig", None)}

    def _account_of_pod(self) -> tuple[dict[str, str], ssl.SSLContext | None]:
        """What a cluster's own API server wants of who asks; nothing for any other issuer."""
        host = urlsplit(self._issuer).hostname or ""
        if host != IN_CLUSTER and not host.startswith(f"{IN_CLUSTER}."):
            return {}, None
        token = (self._account / "token").read_text().strip()
        context = ssl.create_default_context(cafile=str(self._account / "ca.crt"))
        return {"authorization": f"Bearer {token}"}, context
