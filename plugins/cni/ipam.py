"""Where addresses come from: the IPAM plugin that the configuration names, started as the specification says; or the
daemon, which leases one by DHCP."""

import json
import os
import time

from cni.config import BAD_CONFIG, BAD_JSON, IO_FAILED, RESULT, TRY_LATER, Fault, fit

IPVSW_DHCP = "ipvsw-dhcp"
PATIENCE = 30.0  # seconds for a DHCP server
EVERY = 0.02, 0.2  # seconds between two questions to the daemon, first and at most


def delegate(command, config, *, quiet=False):
    """Run the IPAM plugin with the whole configuration; what it answers. With `quiet` nobody wants to know."""
    kind = config["ipam"]["type"]
    program = find(kind)
    given = os.memfd_create("cni")
    os.write(given, json.dumps(config).encode())
    os.lseek(given, 0, os.SEEK_SET)
    reading, writing = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, given, 0), (os.POSIX_SPAWN_DUP2, writing, 1)]
    pid = os.posix_spawn(program, [program], {**os.environ, "CNI_COMMAND": command}, file_actions=actions)
    os.close(writing)
    os.close(given)
    with open(reading, "rb") as file:
        said = file.read()
    failed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if quiet:
        return {}
    try:
        answer = json.loads(said) if said.strip() else {}
    except (ValueError, RecursionError):
        answer = None
    if failed:
        raise fault_of(kind, answer, said)
    if answer is None:
        raise Fault(BAD_JSON, f"ipam.type: {kind} has not answered with JSON")
    return fit(answer, RESULT, kind, BAD_JSON)


def leased(leases, port):
    """What the daemon has leased for the port, as an IPAM plugin would say it; `leases` asks the daemon."""
    end, pause = time.monotonic() + PATIENCE, EVERY[0]
    while True:
        for one in leases():
            if one["port"] == port and one.get("prefix") is not None and one["state"] == "owned":
                return described(one)
        if time.monotonic() > end:
            raise Fault(TRY_LATER, f"{IPVSW_DHCP}: no DHCP server has leased an address within {PATIENCE:g} s")
        time.sleep(pause)
        pause = min(1.5 * pause, EVERY[1])


def described(lease):
    ip = {"address": f"{lease['address']}/{lease['prefix']}"}
    routes = []
    if lease["gateway"]:
        ip["gateway"] = lease["gateway"]
        routes.append({"dst": "0.0.0.0/0", "gw": lease["gateway"]})
    for words in map(str.split, lease["routes"]):
        routes.append({"dst": words[0], **({"gw": words[2]} if len(words) > 2 else {})})
    dns = {"nameservers": lease["dns"]} if lease["dns"] else {}
    if lease["domain"]:
        dns["domain"] = lease["domain"]
    return {"ips": [ip], "routes": routes, "dns": dns}


def fault_of(kind, answer, said):
    """What a plugin that failed says of it, handed on."""
    told = answer if isinstance(answer, dict) else {}
    code = told.get("code")
    words = told.get("msg") or said.decode(errors="replace").strip() or "it failed, and said nothing"
    return Fault(code if isinstance(code, int) and code else IO_FAILED, f"{kind}: {words}")


def find(kind):
    if "/" in kind or "\0" in kind:
        raise Fault(BAD_CONFIG, f"ipam.type: {kind} is not the name of a plugin")
    for directory in os.environ["CNI_PATH"].split(":"):
        path = os.path.join(directory, kind)
        if directory and os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    raise Fault(BAD_CONFIG, f"ipam.type: there is no {kind} in {os.environ['CNI_PATH']}")
