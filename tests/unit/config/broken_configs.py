"""Broken configurations, each with the whole line that it gets."""

from __future__ import annotations


def _switch(lines: str) -> str:
    return f'[[switch]]\nmaster = "eth0"\n{lines}\n'


def _port(lines: str) -> str:
    return _switch(f'[[switch.port]]\nname = "a"\n{lines}')


def _ports(first: str, second: str) -> str:
    return _switch(f"[[switch.port]]\n{first}\n[[switch.port]]\n{second}")


BROKEN: tuple[tuple[str, str], ...] = (
    # TOML
    ("[daemon\n", "line 1, column 8: Expected ']' at the end of a table declaration"),
    ("[daemon]\nworkers = \n", "line 2, column 11: Invalid value"),
    ("workers", "line 1, column 8: Expected '=' after a key in a key/value pair"),
    ("[daemon]\nworkers = 1\nworkers = 2\n", "line 3, column 12: Cannot overwrite a value"),
    ("[daemon]\n[daemon]\n", "line 2, column 8: Cannot declare ('daemon',) twice"),
    ('[daemon]\nsocket = "/run/x\n', "line 2, column 17: Illegal character '\\n'"),
    ("[daemon]\nworkers = 0x" + "f" * 9999, "daemon.workers: a number of 39996 bits is not between 1 and 64"),
    ("[daemon]\nworkers = " + "9" * 9999, "the document: a number in it has too many digits"),
    ('[daemon]\nmetrics = "9417"', 'daemon.metrics: "9417" is not an address and a port, as 127.0.0.1:9417 would be'),
    (
        '[daemon]\nmetrics = "[::1]:0"',
        'daemon.metrics: "[::1]:0" is not an address and a port, as 127.0.0.1:9417 would be',
    ),
    (
        '[daemon]\nmetrics = "192.0.2.1:9417"',
        "daemon.metrics: 192.0.2.1 is not a loopback address; a proxy with TLS may serve others",
    ),
    # the frame
    ("[demon]\n", "demon: unknown key; did you mean daemon?"),
    ("xyz = 1\n", "xyz: unknown key; known keys are daemon, switch"),
    ('"a b" = 1\n', '"a b": unknown key; known keys are daemon, switch'),
    ("daemon = 1\n", "daemon: must be a table, not an integer"),
    ("[[daemon]]\n", "daemon: must be a table, not an array"),
    ("[switch]\nmaster = 'eth0'\n", "switch: must be an array of tables, written [[switch]], not a table"),
    ("switch = 'eth0'\n", "switch: must be an array, not a string"),
    ("switch = ['eth0']\n", "switch[0]: must be a table, not a string"),
    # [daemon]
    ("[daemon]\nsockets = '/run/x'\n", "daemon.sockets: unknown key; did you mean socket?"),
    ("[daemon]\nsocket = 7\n", "daemon.socket: must be a string, not an integer"),
    ("[daemon]\nsocket = ''\n", "daemon.socket: is empty"),
    ("[daemon]\nsocket = 'api.sock'\n", 'daemon.socket: "api.sock" is not an absolute path'),
    (
        f"[daemon]\nsocket = '/{'x' * 104}'\n",
        f'daemon.socket: "/{"x" * 104}" is longer than 104 bytes',
    ),
    ('[daemon]\nsocket = "/run/\\n"\n', 'daemon.socket: "/run/\\n" has an unprintable character'),
    ("[daemon]\nio = 'poll'\n", 'daemon.io: "poll" is not valid; use auto, epoll or uring'),
    ("[daemon]\nbusy_poll = -1\n", "daemon.busy_poll: -1 is not between 0 and 1000"),
    ("[daemon]\ncoalesce = 'no'\n", "daemon.coalesce: must be a boolean, not a string"),
    ("[daemon]\nbusy_poll = '50'\n", "daemon.busy_poll: must be an integer, not a string"),
    ("[daemon]\nworkers = 0\n", "daemon.workers: 0 is not between 1 and 64"),
    ("[daemon]\nworkers = 65\n", "daemon.workers: 65 is not between 1 and 64"),
    ("[daemon]\nworkers = '2'\n", "daemon.workers: must be an integer, not a string"),
    ("[daemon]\nworkers = true\n", "daemon.workers: must be an integer, not a boolean"),
    ("[daemon]\nworkers = 2.0\n", "daemon.workers: must be an integer, not a float"),
    ("[daemon]\nworkers = 1979-05-27\n", "daemon.workers: must be an integer, not a date"),
    # [[switch]]
    ("[[switch]]\nname = 'lan'\n", "switch[0].master: is missing"),
    ("[[switch]]\nmaster = ''\n", "switch[0].master: is empty"),
    ("[[switch]]\nmaster = ['eth0']\n", "switch[0].master: must be a string, not an array"),
    ("[[switch]]\nmaster = 'lo'\n", "switch[0].master: the loopback device cannot be a master"),
    (
        "[[switch]]\nmaster = 'a-master-too-long'\n",
        'switch[0].master: "a-master-too-long" is not an interface name: it is longer than 15 bytes',
    ),
    ("[[switch]]\nmaster = 'a/b'\n", 'switch[0].master: "a/b" is not an interface name: it has a "/"'),
    ("[[switch]]\nmasters = 'eth0'\n", "switch[0].masters: unknown key; did you mean master?"),
    (_switch("ports = []"), "switch[0].ports: unknown key; did you mean port?"),
    (_switch("name = 'a/b'"), 'switch[0].name: "a/b" cannot be a name: it would be read as a path'),
    (_switch("name = '..'"), 'switch[0].name: ".." cannot be a name: it would be read as a path'),
    (_switch("name = 'the lan'"), 'switch[0].name: "the lan" has a space or an unprintable character'),
    (_switch(f"name = '{'n' * 256}'"), f'switch[0].name: "{"n" * 117}..." is longer than 255 bytes'),
    (_switch("mode = 'l4'"), 'switch[0].mode: "l4" is not valid; use l2, l3 or l3s'),
    (_switch("mode = 2"), "switch[0].mode: must be a string, not an integer"),
    (_switch("mode = 'L3'"), 'switch[0].mode: "L3" is not valid; use l2, l3 or l3s'),
    (_switch("mode = ['l3', 'bridge']"), "switch[0].mode: must be a string, not an array"),
    (
        _switch("host_access = 'all'"),
        'switch[0].host_access: "all" is not valid; use none, to-host, from-host or both',
    ),
    (_switch("mode = 'l3'\nmulticast = '224.0.0.251'"), "switch[0].multicast: must be an array, not a string"),
    (
        _switch("mode = 'l3'\nmulticast = ['224.0.0.251', '10.0.0.1']"),
        "switch[0].multicast[1]: 10.0.0.1 is not the address of a multicast group",
    ),
    (
        _switch("mode = 'l3'\nmulticast = ['mdns']"),
        'switch[0].multicast[0]: "mdns" is not an IPv4 or IPv6 address',
    ),
    (
        _switch("mode = 'l3s'\nmulticast = ['ff02::fb', 'ff02::c', 'ff02:0::fb']"),
        "switch[0].multicast[2]: the group ff02::fb is already switch[0].multicast[0]",
    ),
    (
        _switch(f"mode = 'l3'\nmulticast = {[f'239.0.0.{n}' for n in range(17)]}"),
        "switch[0].multicast: 17 groups are more than 16",
    ),
    (
        _switch("multicast = ['224.0.0.251']"),
        "switch[0].multicast: is for modes l3 and l3s; in l2 every group passes",
    ),
    (_switch("host_access = true"), "switch[0].host_access: must be a string, not a boolean"),
    (_switch("host_acces = 'both'"), "switch[0].host_acces: unknown key; did you mean host_access?"),
    (_switch("l3_output = 'slow'"), 'switch[0].l3_output: "slow" is not valid; use fast or host'),
    (_switch("l3_output = 1"), "switch[0].l3_output: must be a string, not an integer"),
    (
        _switch("export = 'routes'"),
        "switch[0].export: routes needs mode l3 or l3s; hosts on the link find l2's by ARP",
    ),
    (_switch("export = 'bgp'"), 'switch[0].export: "bgp" is not valid; use none or routes'),
    (_switch("flag = 'privat'"), 'switch[0].flag: "privat" is not valid; use bridge, private or vepa'),
    (_switch("netns = ''"), "switch[0].netns: is empty; leave it out for the daemon's own namespace"),
    (_switch("") + _switch(""), 'switch[1].master: the interface "eth0" is already used by switch[0].master'),
    (
        "[[switch]]\nmaster = 'a'\nname = 'lan'\n[[switch]]\nmaster = 'b'\nname = 'lan'\n",
        'switch[1].name: the name "lan" is already used by switch[0].name',
    ),
    (
        "[[switch]]\nmaster = 'a'\nnetns = 'x'\n[[switch]]\nmaster = 'a'\nnetns = 'y'\n",
        'switch[1].name: the name "a" is already used by switch[0].name',
    ),
    (
        "[[switch]]\nmaster = 'a'\nnetns = 'x'\n[[switch]]\nname = 'b'\nmaster = 'a'\nnetns = '/run/netns/x'\n",
        'switch[1].master: the interface "a" is already used by switch[0].master',
    ),
    # [[switch.port]]
    (
        _switch("[switch.port]\nname = 'a'"),
        "switch[0].port: must be an array of tables, written [[switch.port]], not a table",
    ),
    (_switch("port = [1]"), "switch[0].port[0]: must be a table, not an integer"),
    (_switch("[[switch.port]]\nifname = 'a'"), "switch[0].port[0].name: is missing"),
    (_switch("[[switch.port]]\nname = 1"), "switch[0].port[0].name: must be a string, not an integer"),
    (
        _switch("[[switch.port]]\nname = 'a-very-long-name'"),
        'switch[0].port[0].name: "a-very-long-name" is not an interface name: it is longer than 15 bytes;'
        " set ifname, or choose another name",
    ),
    (_port("adresses = []"), "switch[0].port[0].adresses: unknown key; did you mean addresses?"),
    (
        _port("kind = 'ipvtap'"),
        'switch[0].port[0].kind: "ipvtap" is not valid; use netns, macvtap, tap, stream or dgram',
    ),
    (
        _port("mac = 'mine'"),
        'switch[0].port[0].mac: "mine" is not valid; use master, own or a MAC address',
    ),
    (
        _port("mac = '03:00:00:00:00:01'"),
        "switch[0].port[0].mac: 03:00:00:00:00:01 is not the MAC address of an interface",
    ),
    (
        _port("label = 'a b'"),
        'switch[0].port[0].label: "a b" must be 1 to 400 printable ASCII characters without spaces',
    ),
    (_port("persist = 'yes'"), 'switch[0].port[0].persist: "yes" is not valid; use always, netns or never'),
    (_port("metric = 0"), "switch[0].port[0].metric: 0 is not between 1 and 4294967295"),
    (
        _port("routes = ['198.51.100.0/24 over 192.0.2.1']"),
        'switch[0].port[0].routes[0]: "198.51.100.0/24 over 192.0.2.1" is not DESTINATION [via GATEWAY] [metric N]',
    ),
    (
        _port("routes = ['default']"),
        'switch[0].port[0].routes[0]: "default" needs a gateway, whose family it is for',
    ),
    (
        _port("routes = ['198.51.100.0/24 via 2001:db8::1']"),
        "switch[0].port[0].routes[0]: 2001:db8::1 is no gateway for 198.51.100.0/24",
    ),
    (
        _port("routes = ['198.51.100.0/24', '198.51.100.0/24']"),
        "switch[0].port[0].routes[1]: 198.51.100.0/24 stands twice",
    ),
    (_port("mac = true"), "switch[0].port[0].mac: must be a string, not a boolean"),
    (
        _port("learn = true"),
        "switch[0].port[0].learn: is for ports of kind macvtap and tap and stream and dgram; this one is of kind netns",
    ),
    (_port("kind = 'tap'\nlearn = 1"), "switch[0].port[0].learn: must be a boolean, not an integer"),
    (_port("kind = 'tap'\nmax_learned = 4"), "switch[0].port[0].max_learned: has no effect without learn = true"),
    (
        _port("kind = 'tap'\nlearn = true\nmax_learned = 0"),
        "switch[0].port[0].max_learned: 0 is not between 1 and 1024",
    ),
    (_port("netns = 'x'\nindex = 0"), "switch[0].port[0].index: 0 is not between 1 and 2147483647"),
    (_port("index = 5"), "switch[0].port[0].index: is for a port in a namespace: set netns"),
    (_port("netns = 'x'\nindex = 5\ndevice = 'veth'"), "switch[0].port[0].index: is for a device that is a tap"),
    (_port("queues = 17"), "switch[0].port[0].queues: 17 is not between 1 and 16"),
    (_port("kind = 'tap'\nqueues = 0"), "switch[0].port[0].queues: 0 is not between 1 and 16"),
    (
        _port("kind = 'macvtap'\nowner = 'alice'"),
        "switch[0].port[0].owner: is for ports of kind tap and stream and dgram; this one is of kind macvtap",
    ),
    (_port("path = '/run/x'"), "switch[0].port[0].path: is for ports of kind stream; this one is of kind netns"),
    (
        _port("kind = 'dgram'\nconnect = '/run/x'"),
        "switch[0].port[0].connect: is for ports of kind stream; this one is of kind dgram",
    ),
    (
        _port("kind = 'stream'\nnetns = 'x'"),
        "switch[0].port[0].netns: is for ports of kind netns and macvtap and tap; this one is of kind stream",
    ),
    (
        _port("kind = 'stream'\nqueues = 2"),
        "switch[0].port[0].queues: is for ports of kind netns and macvtap and tap; this one is of kind stream",
    ),
    (_port("kind = 'stream'\npath = 'x'"), 'switch[0].port[0].path: "x" is not an absolute path'),
    (
        _port("kind = 'stream'\npath = '/run/x'\nconnect = '/run/y'"),
        "switch[0].port[0].connect: the daemon listens on path already; set one of them",
    ),
    (
        _port("kind = 'dgram'\nlocal = '/run/x'"),
        "switch[0].port[0].remote: is missing; dgram needs both local and remote, or neither",
    ),
    (
        _port("kind = 'dgram'\nremote = '/run/x'"),
        "switch[0].port[0].local: is missing; dgram needs both local and remote, or neither",
    ),
    (
        _port("kind = 'stream'\nconnect = '/run/x'\nowner = 'alice'"),
        "switch[0].port[0].owner: is for a socket that the daemon makes: set path or local",
    ),
    (
        _ports("name = 'a'\nkind = 'stream'\npath = '/run/x'", "name = 'b'\nkind = 'stream'\nconnect = '/run/x'"),
        'switch[0].port[1].connect: the path "/run/x" is already used by switch[0].port[0].path',
    ),
    (_port("kind = 'tap'\nowner = -1"), "switch[0].port[0].owner: -1 is not between 0 and 4294967294"),
    (_port("kind = 'tap'\nallow = ['@']"), "switch[0].port[0].allow[0]: the name of a group is missing after the @"),
    (_port("kind = 'tap'\nallow = [1.5]"), "switch[0].port[0].allow[0]: must be a name or a number, not a float"),
    (
        _port("kind = 'tap'\naddresses = ['10.0.0.2/24']\ngateway = ['10.0.0.1']"),
        "switch[0].port[0].gateway: is for ports of kind netns; this one is of kind tap",
    ),
    (_port("ifname = 'a:0'"), 'switch[0].port[0].ifname: "a:0" is not an interface name: it has a ":"'),
    (_port("ifname = 'a%d'"), 'switch[0].port[0].ifname: "a%d" is not an interface name: it has a "%"'),
    (
        _port("ifname = 'a b'"),
        'switch[0].port[0].ifname: "a b" is not an interface name: it has a space or an unprintable character',
    ),
    (
        _port("ifname = '.'"),
        'switch[0].port[0].ifname: "." is not an interface name: the kernel reserves it',
    ),
    (
        _port("ifname = 'all'"),
        'switch[0].port[0].ifname: "all" is not an interface name: the kernel reserves it',
    ),
    (
        _port("ifname = 'ääääääää'"),
        'switch[0].port[0].ifname: "ääääääää" is not an interface name: it is longer than 15 bytes',
    ),
    (_port("netns = 1234"), "switch[0].port[0].netns: must be a string, not an integer"),
    (_port("netns = 'pid:x'"), 'switch[0].port[0].netns: "pid:x" does not name a process, as pid:1234 would'),
    (_port("netns = 'pid:0'"), 'switch[0].port[0].netns: "pid:0" does not name a process, as pid:1234 would'),
    (
        _port("netns = 'netns/ns0'"),
        'switch[0].port[0].netns: "netns/ns0" is not a name, an absolute path or pid:N',
    ),
    (_port("netns = '..'"), 'switch[0].port[0].netns: ".." cannot be a name: it would be read as a path'),
    (
        _port('netns = "/run/\\u0000"'),
        'switch[0].port[0].netns: "/run/\\u0000" has an unprintable character',
    ),
    (_port("mtu = 67"), "switch[0].port[0].mtu: 67 is not between 68 and 65535"),
    (_port("mtu = 65536"), "switch[0].port[0].mtu: 65536 is not between 68 and 65535"),
    (_port("mtu = '1500'"), "switch[0].port[0].mtu: must be an integer, not a string"),
    (
        _port("mtu = 1279\naddresses = ['10.0.0.2/24', 'fd00::2/64']"),
        "switch[0].port[0].mtu: 1279 is less than 1280, which IPv6 addresses need",
    ),
    # addresses
    (_port("addresses = '10.0.0.2/24'"), "switch[0].port[0].addresses: must be an array, not a string"),
    (_port("addresses = [5]"), "switch[0].port[0].addresses[0]: must be a string, not an integer"),
    (
        _ports("name = 'a'\naddresses = ['10.0.0.2/24']", "name = 'b'\naddresses = ['10.0.0.300/24']"),
        'switch[0].port[1].addresses[0]: "10.0.0.300/24" is not an IPv4 or IPv6 interface address',
    ),
    (
        _port("addresses = ['10.0.0.2/33']"),
        'switch[0].port[0].addresses[0]: "10.0.0.2/33" is not an IPv4 or IPv6 interface address',
    ),
    (
        _port("addresses = ['10.0.0.2/255.255.255.0']"),
        'switch[0].port[0].addresses[0]: "10.0.0.2/255.255.255.0" is not an IPv4 or IPv6 interface address',
    ),
    (
        _port("addresses = ['10.0.0.2/24', 'fe80::1%eth0/64']"),
        'switch[0].port[0].addresses[1]: "fe80::1%eth0/64" is not an IPv4 or IPv6 interface address',
    ),
    (
        _port("addresses = ['fd00:::2/64']"),
        'switch[0].port[0].addresses[0]: "fd00:::2/64" is not an IPv4 or IPv6 interface address',
    ),
    (_port("addresses = ['0.0.0.0/24']"), "switch[0].port[0].addresses[0]: 0.0.0.0 is the unspecified address"),
    (_port("addresses = ['::/64']"), "switch[0].port[0].addresses[0]: :: is the unspecified address"),
    (
        _port("addresses = ['255.255.255.255/32']"),
        "switch[0].port[0].addresses[0]: 255.255.255.255 is the broadcast address",
    ),
    (
        _port("addresses = ['ff02::1/64']"),
        "switch[0].port[0].addresses[0]: ff02::1 is a multicast address, which no port can own",
    ),
    (_port("addresses = ['::1/128']"), "switch[0].port[0].addresses[0]: ::1 belongs to the loopback device"),
    (
        _port("addresses = ['10.0.0.2/24', '10.0.0.2/24']"),
        'switch[0].port[0].addresses[1]: the address "10.0.0.2" is already used by switch[0].port[0].addresses[0]',
    ),
    (
        _ports("name = 'a'\naddresses = ['10.9.9.9/8', 'fd00::2/64']", "name = 'b'\naddresses = ['fd00:0::2/48']"),
        'switch[0].port[1].addresses[0]: the address "fd00::2" is already used by switch[0].port[0].addresses[1]',
    ),
    # gateway
    (_port("gateway = '10.0.0.1'"), "switch[0].port[0].gateway: must be an array, not a string"),
    (_port("gateway = ['10.0.0.1/24']"), 'switch[0].port[0].gateway[0]: "10.0.0.1/24" is not an IPv4 or IPv6 address'),
    (_port("gateway = ['router']"), 'switch[0].port[0].gateway[0]: "router" is not an IPv4 or IPv6 address'),
    (
        _port("gateway = ['fe80::1%eth0']"),
        'switch[0].port[0].gateway[0]: "fe80::1%eth0" is not an IPv4 or IPv6 address',
    ),
    (_port("gateway = ['0.0.0.0']"), "switch[0].port[0].gateway[0]: 0.0.0.0 is the unspecified address"),
    (_port("gateway = ['224.0.0.1']"), "switch[0].port[0].gateway[0]: 224.0.0.1 cannot be a gateway"),
    (_port("gateway = ['127.0.0.1']"), "switch[0].port[0].gateway[0]: 127.0.0.1 cannot be a gateway"),
    (
        _port("gateway = ['10.0.0.1']"),
        "switch[0].port[0].gateway[0]: 10.0.0.1 needs an IPv4 address in addresses",
    ),
    (
        _port("addresses = ['10.0.0.2/24']\ngateway = ['10.0.0.1', 'fd00::1']"),
        "switch[0].port[0].gateway[1]: fd00::1 needs an IPv6 address in addresses",
    ),
    (
        _port("addresses = ['10.0.0.2/24']\ngateway = ['10.0.0.1', '10.0.0.3']"),
        "switch[0].port[0].gateway[1]: 10.0.0.3 is a second IPv4 gateway; the first is switch[0].port[0].gateway[0]",
    ),
    (
        _port("addresses = ['10.0.0.2/24']\ngateway = ['10.0.0.2']"),
        "switch[0].port[0].gateway[0]: 10.0.0.2 is the port's own address",
    ),
    # names across ports
    (
        _ports("name = 'a'", "name = 'a'\nifname = 'b'"),
        'switch[0].port[1].name: the name "a" is already used by switch[0].port[0].name',
    ),
    (
        _ports("name = 'a'\nnetns = 'ns0'", "name = 'b'\nifname = 'a'\nnetns = '/var/run/netns/ns0'"),
        'switch[0].port[1].ifname: the interface name "a" is already used by switch[0].port[0].ifname',
    ),
    (
        _port("netns = 'ns0'") + "[[switch]]\nmaster = 'eth1'\n[[switch.port]]\nname = 'a'\nnetns = 'ns0'\n",
        'switch[1].port[0].ifname: the interface name "a" is already used by switch[0].port[0].ifname',
    ),
    (
        _port("ifname = 'eth0'"),
        'switch[0].port[0].ifname: the interface name "eth0" is already used by switch[0].master',
    ),
    (
        _port("ifname = 'eth1'") + "[[switch]]\nmaster = 'eth1'\n[[switch.port]]\nname = 'eth1'\n",
        'switch[1].port[0].ifname: the interface name "eth1" is already used by switch[0].port[0].ifname',
    ),
)
