"""Who posts events: verification of the OIDC token that a broker sends along, when asked for.

Only asymmetric signatures of the issuer's published keys are taken. Keys come from the issuer's
discovery document; PyJWT keeps them, and asks again when a token names one that it does not know.
Source: OpenID Connect Discovery 1.0; RFC 7519; Knative Eventing's sender identity.
"""

from __future__ import annotations

import json
import ssl
import threading
import time as clock
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import jwt

from .errors import Unauthorized, Unavailable

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA")
LEEWAY_SECONDS = 30
"""How far the issuer's clock may be off."""
KEYS_SECONDS = 3600.0
"""How long keys are kept."""
COOLDOWN_SECONDS = 10.0
"""How often an unknown key has the issuer asked, at most."""
FETCH_SECONDS = 5.0
MAX_DOCUMENT = 1 << 20
"""Bytes of a discovery document."""
MAX_TOKENS = 1000
"""Verified tokens that are remembered until they expire."""

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds its own token and the cluster's certificate authority."""
IN_CLUSTER = "kubernetes.default.svc"


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
        self._verified: dict[str, float] = {}
        self._keys: jwt.PyJWKClient | None = None

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
        try:
            if jwt.get_unverified_header(token).get("alg") not in ALGORITHMS:
                raise Unauthorized("authorization: the token's algorithm is not taken")
            claims = jwt.decode(
                token,
                self._client().get_signing_key_from_jwt(token),
                algorithms=ALGORITHMS,
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "aud", "iss"]},
            )
        except jwt.PyJWKClientConnectionError as error:
            raise _unreachable(error) from None
        except jwt.PyJWTError as error:
            raise Unauthorized(f"authorization: {error}") from None
        with self._lock:
            if len(self._verified) >= MAX_TOKENS:
                self._verified.clear()
            self._verified[authorization] = float(claims["exp"])

    def _client(self) -> jwt.PyJWKClient:
        """What keeps the issuer's keys. Raises Unavailable where it cannot be found."""
        with self._lock:
            if self._keys is None:
                headers, context = self._account_of_pod()
                request = Request(
                    f"{self._issuer.rstrip('/')}/.well-known/openid-configuration", headers=headers
                )
                try:
                    with urlopen(request, timeout=FETCH_SECONDS, context=context) as answer:
                        document = json.loads(answer.read(MAX_DOCUMENT))
                    if document["issuer"] != self._issuer:
                        raise ValueError(f"it calls itself {document['issuer']!r}")
                    self._keys = jwt.PyJWKClient(
                        document["jwks_uri"],
                        lifespan=KEYS_SECONDS,
                        headers=headers,
                        timeout=FETCH_SECONDS,
                        ssl_context=context,
                        cooldown_duration=COOLDOWN_SECONDS,
                    )
                except (OSError, HTTPException, LookupError, TypeError, ValueError) as error:
                    raise _unreachable(error) from None
                except jwt.PyJWTError as error:
                    raise _unreachable(error) from None
            return self._keys

    def _account_of_pod(self) -> tuple[dict[str, str], ssl.SSLContext | None]:
        """What a cluster's own API server wants of who asks; nothing for any other issuer."""
        host = urlsplit(self._issuer).hostname or ""
        if host != IN_CLUSTER and not host.startswith(f"{IN_CLUSTER}."):
            return {}, None
        try:
            token = (self._account / "token").read_text().strip()
            context = ssl.create_default_context(cafile=str(self._account / "ca.crt"))
        except OSError as error:
            raise _unreachable(error) from None
        return {"authorization": f"Bearer {token}"}, context


def _unreachable(error: Exception) -> Unavailable:
    return Unavailable(f"the issuer of tokens cannot be asked: {error}")
