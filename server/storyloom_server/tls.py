"""Encrypted calls: server credentials from files, with or without client certificates, renewed when the files change.

gRPC asks for the certificate at every handshake, so that connections made after a renewal see the new one; those that
are open go on. Files are tried, in a handshake of this process with itself, before any client sees them.
"""

import logging
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

import grpc

from storyloom_server.file_watch import FileWatch
from storyloom_server.logs import fields
from storyloom_server.setup_error import SetupError

log = logging.getLogger("storyloom.tls")


class TlsError(SetupError):
    """The files cannot be used. The message says which, and what to do."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. With ``client_ca``, clients must show a certificate of one of its authorities."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """All that are given."""
        return tuple(path for path in (self.cert, self.key, self.client_ca) if path is not None)


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials for ``add_secure_port`` that follow the files.

    Raises:
        TlsError: a file is missing, unreadable or not what it should be, the key is another certificate's, or the
            certificate is out of its time.
    """
    source = _Source(files)
    credentials: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
        source.first,
        source.fetch,  # type: ignore[arg-type]  # None is "as before"; the stubs do not know.
        require_client_authentication=files.client_ca is not None,
    )
    return credentials


class _Source:
    """What gRPC's threads ask, at each handshake."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._watch = FileWatch(files.paths)
        self.first = _load(files)

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """The new configuration after a change, else None. Files that cannot be used change nothing."""
        with self._lock:
            if not self._watch.changed():
                return None
        try:
            loaded = _load(self._files)
        except TlsError as error:
            log.error("the TLS files cannot be used; the old certificate stays", extra=fields(problem=str(error)))
            return None
        log.info("TLS certificate renewed", extra=fields(cert=str(self._files.cert)))
        return loaded


def _load(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    contents = [_read(path) for path in files.paths]
    _check(files)
    configuration: grpc.ServerCertificateConfiguration = grpc.ssl_server_certificate_configuration(
        [(contents[1], contents[0])], root_certificates=contents[2] if files.client_ca is not None else None
    )
    return configuration


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsError(f"cannot read {path} ({error.strerror}); name a PEM file that this user may read") from error


def _check(files: TlsFiles) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # An encrypted key would ask for its password on the terminal.
        server.load_cert_chain(files.cert, files.key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            raise TlsError(f"{files.key} is not the key of {files.cert}; give the two that belong together") from error
        raise TlsError(
            f"{files.cert} and {files.key} are not a certificate and its key in PEM form without a password"
        ) from error
    if files.client_ca is not None:
        try:
            ssl.create_default_context(cafile=files.client_ca)
        except ssl.SSLError as error:
            raise TlsError(f"{files.client_ca} has no certificate authorities in PEM form") from error
    _shake_hands(server, files.cert)


def _no_password() -> str:
    raise ValueError("the key has a password")


def _shake_hands(server_context: ssl.SSLContext, cert: Path) -> None:
    """A client that trusts this very certificate must accept it: it is in its time, and meant for servers."""
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = False
    client_context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client_context.load_verify_locations(cert)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    waiting = [client, server]
    try:
        for _ in range(4):  # Two round trips, and a step to spare.
            for side in tuple(waiting):
                try:
                    side.do_handshake()
                    waiting.remove(side)
                except ssl.SSLWantReadError:
                    continue
    except ssl.SSLCertVerificationError as error:
        raise TlsError(f"{cert} cannot be used: {error.verify_message}; renew it") from error
    except ssl.SSLError as error:
        raise TlsError(f"{cert} cannot be used for TLS: {error.reason}") from error
