"""Docker network plugin `ipvsw`: `docker network create -d ipvsw -o parent=eth0 ...`.

A process of its own beside ipvswd, which it asks by the API. The socket's name is the driver's.
"""

import argparse
import http.server
import json
import os
import signal
import socketserver
import sys

from common.asked import Fault
from common.daemon import SOCKET, DaemonDown, Refusal

from docker.driver import Driver
from docker.networks import Networks

LISTEN, STATE = "/run/docker/plugins/ipvsw.sock", "/var/lib/ipvsw-docker/networks.json"
TYPE = "application/vnd.docker.plugins.v1.1+json"
BODY_MAX = 1 << 20  # bytes
TIMEOUT = 10.0  # seconds that a request may take to be there


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    driver = None


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT

    def do_POST(self):
        status, answer = self._answer()
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", TYPE)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _answer(self):
        try:
            asked = self._asked()
            answer = self.server.driver.answer(self.path.lstrip("/"), asked)
        except (Fault, DaemonDown, Refusal, OSError) as error:
            print(f"{self.path}: {error}", file=sys.stderr, flush=True)
            return 200, {"Err": str(error)}
        return (404, {"Err": f"{self.path}: not supported"}) if answer is None else (200, answer)

    def _asked(self):
        """Errors: Fault."""
        length = self.headers.get("Content-Length") or "0"
        if not length.isdecimal() or int(length) > BODY_MAX or self.headers.get("Transfer-Encoding"):
            self.close_connection = True
            raise Fault("the request has no length, or is too long")
        try:
            asked = json.loads(self.rfile.read(int(length)) or b"{}")
        except ValueError:
            raise Fault("the request is not JSON") from None
        if not isinstance(asked, dict):
            raise Fault("the request is not an object")
        return asked

    def address_string(self):
        return "docker"

    def log_message(self, *words):
        pass


def main():
    parser = argparse.ArgumentParser(prog="ipvsw-docker", description="Docker networks of ipvswd's.")
    parser.add_argument("--socket", metavar="PATH", default=SOCKET, help="ipvswd's")
    parser.add_argument("--listen", metavar="PATH", default=LISTEN, help="where Docker looks for the plugin")
    parser.add_argument("--state", metavar="FILE", default=STATE, help="where networks are kept")
    arguments = parser.parse_args()
    try:
        networks = Networks(arguments.state)
        os.makedirs(os.path.dirname(arguments.listen), 0o755, exist_ok=True)
        if os.path.exists(arguments.listen):
            os.unlink(arguments.listen)
        server = Server(arguments.listen, Handler)
    except (OSError, Fault) as error:
        print(f"ipvsw-docker: {error}", file=sys.stderr)
        return 1
    server.driver = Driver(arguments.socket, networks)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        server.serve_forever()
    finally:
        os.unlink(arguments.listen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
