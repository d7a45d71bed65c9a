"""Who may pass a gate: the server's side of SASL, SCRAM by a package of its own (scramp)."""

from __future__ import annotations

from collections.abc import Mapping

from scramp import ScramException, ScramMechanism


class Login:
    """One client that says who it is."""

    def __init__(self, mechanism: str, users: Mapping[str, str]) -> None:
        self._users = users
        self._server = None
        self.is_over = False
        if mechanism != "PLAIN":
            self._mechanism = ScramMechanism(mechanism)
            self._server = self._mechanism.make_server(self._known)
            self._is_first = True

    def _known(self, user: str) -> tuple[bytes, bytes, bytes, int]:
        password = self._users.get(user, "nobody has this one")
        known: tuple[bytes, bytes, bytes, int] = self._mechanism.make_auth_info(password)
        return known

    def answer(self, said: bytes) -> bytes | None:
        """The server's next message; None: this one may not pass."""
        if self._server is None:
            _, user, password = said.decode().split("\0")
            self.is_over = True
            return b"" if self._users.get(user) == password else None
        try:
            if self._is_first:
                self._is_first = False
                self._server.set_client_first(said.decode())
                return str(self._server.get_server_first()).encode()
            self._server.set_client_final(said.decode())
        except ScramException:
            return None
        self.is_over = True
        return str(self._server.get_server_final()).encode()
