"""`web`: the switch as a page in a browser."""

from __future__ import annotations

from ipvsw.cli.command import Asked, Command, Failed, Option, Usage, read_nothing

LISTEN = "127.0.0.1:8417"


def _read(words: list[str], asked: Asked) -> None:
    read_nothing(words, asked)
    _address(asked)


def _address(asked: Asked) -> tuple[str, int]:
    """Errors: Usage."""
    from ipaddress import ip_address

    text = asked.options.get("listen", LISTEN)
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        known = bool(colon) and port.isascii() and port.isdecimal() and int(port) < 65536
        if known and ip_address(host).is_loopback:
            return host, int(port)
    except ValueError:
        pass
    raise Usage(f"--listen: {text} is no loopback address with a port, such as {LISTEN}", asked.command)


def _web(asked: Asked) -> None:
    """Until Ctrl-C."""
    import asyncio

    from ipvsw.web.server import serve

    asked.client.config()  # that there is a daemon
    host, port = _address(asked)
    try:
        asyncio.run(serve(asked.socket, host, port, _tell))
    except OSError as error:
        raise Failed(f"{host}:{port}: {error.strerror or error}") from None


def _tell(address: str) -> None:
    print(f"for one browser: {address}", flush=True)


COMMANDS = (
    Command(
        name="web",
        summary="the switch as a page in a browser",
        about="""\
Serve a page that shows the switches, their ports and addresses, rates, drops and events, and traces
frames, until Ctrl-C. It changes nothing. The address that is printed opens it in one browser; then
another one is printed for the next.

The page is for this machine alone. From another one:  ssh -L 8417:127.0.0.1:8417 HOST
""",
        read=_read,
        run=_web,
        options=(Option("--listen", f"a loopback address [{LISTEN}]", operand="ADDRESS:PORT"),),
    ),
)
