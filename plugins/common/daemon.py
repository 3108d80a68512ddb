"""What a plugin needs of ipvswd: requests to its API, with the standard library alone, and little of it."""

import json
import os
import socket
import struct

SOCKET = "/run/ipvsw/api.sock"
TIMEOUT = 60.0  # seconds for one answer


class DaemonDown(Exception):
    """No daemon answers; the text names the socket."""


class Refusal(Exception):
    """An answer of the daemon that is an error."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


def call(path, method, target, body=None, descriptor=None):
    """What the API at the socket `path` answers to a request for `target`, with which `descriptor` goes. Errors:
    DaemonDown, Refusal."""
    content = b"" if body is None else json.dumps(body).encode()
    head = (
        f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    message = head.encode("utf-8", "surrogateescape") + content
    rights = [] if descriptor is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("=i", descriptor))]
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT)
            connection.connect(path)
            try:
                rest = message[connection.sendmsg([message], rights) :]
                if rest:
                    connection.sendall(rest)
            except (BrokenPipeError, ConnectionResetError):
                pass  # refused before all was sent
            answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    except (OSError, ValueError) as error:  # ValueError: what is no path
        raise DaemonDown(f"{path}: {getattr(error, 'strerror', None) or error}; does ipvswd run?") from None
    first, _, rest = answer.partition(b"\r\n\r\n")
    words = first.split(None, 2)
    if len(words) < 2 or not words[1].isdigit():
        raise DaemonDown(f"{path}: not the answer of ipvswd")
    try:
        found = json.loads(rest) if rest else None
    except ValueError:
        raise DaemonDown(f"{path}: not the answer of ipvswd") from None
    if int(words[1]) >= 400:
        text = found.get("error") if isinstance(found, dict) else None
        raise Refusal(int(words[1]), text or words[1].decode())
    return found


def remove_labelled(path, label):
    """The ports with that label; none is no error. Errors: DaemonDown, Refusal."""
    try:
        call(path, "DELETE", f"/v1/labels/{quoted(label)}")
    except Refusal as error:
        if error.status != 404:
            raise


def quoted(label):
    """Of what a label may have, nothing else must not stand in a path."""
    return label.replace("%", "%25").replace("/", "%2F").replace("?", "%3F").replace("#", "%23")


def fault_of(port, addresses):
    """Why the port is not what was asked for, with these addresses, and first whether to try again; None if it is."""
    if port["state"] == "waiting":
        return True, f"the port waits {port['reason']}"
    if port["state"] != "up" or port["reason"]:
        return False, f"the port is {port['state']}: {port['reason']}"
    wanted = {address.partition("/")[0] for address in addresses}
    for one in port["addresses"]:
        if one["address"] in wanted and one["state"] not in ("owned", "down"):
            return False, f"{one['address']}: {one['state']} {one['reason']}".rstrip()
    return None


def short_name(ifname, label):
    """The name of a port: short, and no other attachment's."""
    from hashlib import blake2b

    return f"{ifname}-{blake2b(label.encode(), digest_size=6).hexdigest()}"


def is_writable(path):
    return os.access(path, os.W_OK)
