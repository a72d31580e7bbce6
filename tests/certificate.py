"""A certificate for servers of tests that speak TLS, as clusters do."""

from __future__ import annotations

import datetime
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Certificate:
    """For one host, signed by itself."""

    host: str
    cert: Path
    key: Path

    @classmethod
    def make(cls, folder: Path, host: str) -> Certificate:
        """:param folder: is made if it is not there, for ``cert.pem`` and ``key.pem``."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        folder.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
        now = datetime.datetime.now(datetime.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        found = cls(host, folder / "cert.pem", folder / "key.pem")
        found.cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        plain = serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        found.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, *plain))
        return found

    def over(self, listener: socket.socket) -> ssl.SSLSocket:
        """A listener whose connections speak TLS. One shakes hands when it is first read, and lets none wait."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert, self.key)
        return context.wrap_socket(listener, server_side=True, do_handshake_on_connect=False)
