"""TLS to a server: loaded only where a URL asks for it, for it brings OpenSSL."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

from allocator.model.errors import ConfigurationError

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from allocator.model.redis_urls import StoreAddress


def context_of(address: StoreAddress) -> ssl.SSLContext:
    """Return what TLS goes by; files are read each time, for certificates are renewed.

    Raises:
        ConfigurationError: When a file cannot be used.
    """
    options: Mapping[str, Any] = address.ssl_options
    needs = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
    required = needs[options.get("ssl_cert_reqs", "required")]
    context = ssl.create_default_context()
    context.check_hostname = required is not ssl.CERT_NONE and options.get("ssl_check_hostname", True)
    context.verify_mode = required
    certificate: Any = options.get("ssl_certfile")
    key: Any = options.get("ssl_keyfile")
    trusted: dict[str, Any] = {"cafile": options.get("ssl_ca_certs"), "capath": options.get("ssl_ca_path")}
    try:
        if certificate or key:  # "" for no password: OpenSSL would ask the terminal for one
            context.load_cert_chain(certificate or key, key, options.get("ssl_password", ""))
        if any(trusted.values()):
            context.load_verify_locations(**trusted)
    except OSError as error:
        raise ConfigurationError(
            f"Redis at {address.shown}: TLS failed, for a certificate or key cannot be used "
            f"({error.strerror or error}); check the ssl_… options"
        ) from error
    return context


def wrapped(opened: socket.socket, context: ssl.SSLContext, name: str | None) -> socket.socket:
    """Return a socket that speaks TLS over one that is connected.

    Raises:
        TimeoutError: When the handshake did not end in time; `ssl.SSLError` when it failed.
    """
    try:
        return context.wrap_socket(opened, server_hostname=name)
    except TimeoutError:
        raise TimeoutError("the TLS handshake did not end") from None
