"""A container's port: what the API is asked for, and what the runtime is told of it."""

from cni.config import BAD_CONFIG, PORT_KEYS, UNSUPPORTED, Fault, as_numbers, cni_args

TABLE_MAIN = 254


def master_of(config):
    """As the ipvlan plugin: what the configuration says, what the plugin before has made, the default route's."""
    interfaces = config.get("prevResult", {}).get("interfaces") or [{}]
    found = config.get("master") or interfaces[0].get("name") or default_interface()
    if not found:
        raise Fault(BAD_CONFIG, "master: missing, and there is no default route")
    return found


def default_interface():
    """That of the default route with the lowest metric."""
    with open("/proc/net/route", encoding="ascii") as file:
        rows = [line.split() for line in file][1:]
    defaults = [(int(row[6]), row[0]) for row in rows if row[1] == row[7] == "00000000"]
    if not defaults:
        with open("/proc/net/ipv6_route", encoding="ascii") as file:
            rows = [line.split() for line in file]
        defaults = [(int(row[5], 16), row[9]) for row in rows if row[1] == "00" and row[9] != "lo"]
    return min(defaults)[1] if defaults else ""


def read_options(config):
    """Keys of the port, and mode and flag of its switch."""
    ours, runtime = config.get("ipvsw", {}), config.get("runtimeConfig", {})
    body = {key: ours[key] for key in (*PORT_KEYS, "flag") if key in ours}
    body |= {key: config[key] for key in ("mode", "mtu") if config.get(key)}
    if mac := runtime.get("mac") or cni_args().get("MAC"):
        body["mac"] = mac
    if bandwidth := runtime.get("bandwidth"):
        sends, receives = (rate(bandwidth.get(f"{way}Rate")) for way in ("egress", "ingress"))
        body["rate"] = f"{sends}/{receives}"
    return body


def rate(bits):
    return f"{-(-bits // 1000)}kbit" if bits else "off"


def requested_ips(config):
    """Without IPAM, addresses that the runtime asks for."""
    return [{"address": address} for address in config.get("runtimeConfig", {}).get("ips") or ()]


def read_routes(found, config):
    """Gateways, and routes as the daemon has them. One without a gateway has that of its family's address."""
    gateways = {}
    for one in found.get("ips") or ():
        if one.get("gateway"):
            gateways.setdefault(":" in one["address"], one["gateway"])
    default, others = {}, list(config.get("ipvsw", {}).get("routes", ()))
    for route in found.get("routes") or ():
        if route.get("table", TABLE_MAIN) != TABLE_MAIN or route.get("scope"):
            raise Fault(UNSUPPORTED, f"route {route['dst']}: table and scope are not supported")
        six = ":" in route["dst"]
        gateway = route.get("gw") or gateways.get(six)
        if route["dst"] in ("0.0.0.0/0", "::/0") and gateway and six not in default and not route.get("priority"):
            default[six] = gateway
            continue
        words = [route["dst"], *(["via", gateway] if gateway else [])]
        words += ["metric", str(route["priority"])] if route.get("priority") else []
        others.append(" ".join(words))
    return list(default.values()), others


def result(config, attachment, found, port, previous):
    version = config["cniVersion"]
    interface = {"name": attachment.ifname, "mac": port["mac"], "sandbox": attachment.netns}
    if as_numbers(version) >= [1, 1, 0]:
        interface["mtu"] = port["mtu"]
    before = previous or {}
    interfaces = [*(before.get("interfaces") or ()), interface]
    ips = [own_ip(one, len(interfaces) - 1, version) for one in found.get("ips") or ()]
    answer = {"cniVersion": version, "interfaces": interfaces, "ips": [*(before.get("ips") or ()), *ips]}
    if routes := [*(before.get("routes") or ()), *(found.get("routes") or ())]:
        answer["routes"] = routes
    if dns := config.get("dns") or found.get("dns") or before.get("dns"):
        answer["dns"] = dns
    return answer


def own_ip(found, index, version):
    one = {"interface": index, "address": found["address"]}
    if found.get("gateway"):
        one["gateway"] = found["gateway"]
    if as_numbers(version) < [1, 0, 0]:
        one["version"] = "6" if ":" in found["address"] else "4"
    return one
