"""A network of Podman's: what is wrong with one, and what a container's port in it is like. Pure."""

from common.asked import FLAGS, MODES, PUBLISHED, Fault, check_choice, check_known, dictionary, guards, objects

NUMBERS = ("mtu", "metric", "max_addresses", "max_groups", "queues")
TEXTS = ("broadcast", "guard", "packets", "rate")
OPTIONS = ("parent", "mode", "flag", "no_default_route", "socket", "bclim", *NUMBERS, *TEXTS)
NO_GATEWAY = "ipvsw_no_gateway"  # option in which `create` notes the subnets for which nobody has named one


def checked(network):
    """The network as it is to be kept. Errors: Fault."""
    options = dictionary(network, "options")
    check_known(options, OPTIONS)
    parent = options.get("parent")
    if parent and network.get("network_interface") not in (None, "", parent):
        raise Fault(f"option parent: {parent} is not the --interface-name {network['network_interface']}")
    if not parent and not network.get("network_interface"):
        raise Fault("option parent: missing; say -o parent=eth0")
    for key, known in (("mode", MODES), ("flag", FLAGS), ("no_default_route", ("true", "false", "1", "0"))):
        check_choice(options, key, known)
    for key in NUMBERS:
        number(options, key)
    driver = dictionary(network, "ipam_options").get("driver")
    if driver == "dhcp":
        raise Fault("--ipam-driver dhcp: not supported; with none the container may run a DHCP client")
    ungiven = [str(one.get("subnet")) for one in objects(network, "subnets") if not one.get("gateway")]
    if not ungiven:
        return network
    return {**network, "options": {**options, NO_GATEWAY: ",".join(ungiven)}}


def port_of(asked):
    """What the API is asked to add for a container, and its subnets as Podman wants to know them. Errors: Fault."""
    if asked.get("port_mappings"):
        raise Fault(PUBLISHED)
    network, own = dictionary(asked, "network"), dictionary(asked, "network_options")
    options = dictionary(network, "options")
    ifname = own.get("interface_name")
    if not isinstance(ifname, str) or not ifname:
        raise Fault("network_options.interface_name: missing")
    addresses, subnets = addressed(network, own, ungiven=str(options.get(NO_GATEWAY, "")).split(","))
    body = {"master": options.get("parent") or network.get("network_interface"), "ifname": ifname}
    body |= {key: options[key] for key in ("mode", "flag", *TEXTS) if key in options}
    if "guard" in body:
        body["guard"] = guards(body["guard"])
    body |= {key: number(options, key) for key in NUMBERS if key in options}
    if own.get("static_mac"):
        body["mac"] = own["static_mac"]
    bare = network.get("internal") or options.get("no_default_route") in ("true", "1")
    gateways = [one["gateway"] for one in subnets if "gateway" in one]
    routes = [route_of(one) for one in objects(network, "routes")]
    return {
        **body,
        "addresses": addresses,
        **({} if bare or not gateways else {"gateway": gateways}),
        **({"routes": routes} if routes else {}),
    }, subnets


def addressed(network, own, ungiven):
    """Addresses with prefix lengths, each of its subnet's; and the subnets. Errors: Fault."""
    static = own.get("static_ips") or []
    found = objects(network, "subnets")
    if not isinstance(static, list) or len(static) > len(found):
        raise Fault("network_options.static_ips: more than there are subnets")
    addresses, subnets = [], []
    for address, subnet in zip(static, found, strict=False):
        prefix = str(subnet.get("subnet")).rpartition("/")[2]
        addresses.append(f"{address}/{prefix}")
        gateway = subnet.get("gateway")
        known = {"gateway": gateway} if gateway and subnet.get("subnet") not in ungiven else {}
        subnets.append({"ipnet": addresses[-1], **known})
    return addresses, subnets


def route_of(one):
    words = [str(one.get("destination"))]
    words += ["via", str(one["gateway"])] if one.get("gateway") else []
    words += ["metric", str(one["metric"])] if one.get("metric") else []
    return " ".join(words)


def number(options, key):
    value = options.get(key)
    if value is not None and not (isinstance(value, str) and value.isascii() and value.isdigit()):
        raise Fault(f"option {key}: {value} is not a number")
    return None if value is None else int(value)
