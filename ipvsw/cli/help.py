"""What `--help` says, on each level."""

from __future__ import annotations

from ipvsw.model import DEFAULT_SOCKET

_OPTIONS = f"""\
Options, before or after the command:
  -j, --json         print JSON
      --socket PATH  the daemon's socket [{DEFAULT_SOCKET}]
  -h, --help         help, also on what follows: ipvsw link add --help
  -V, --version      the version
"""

HELP = {
    "": f"""\
usage: ipvsw [OPTIONS] COMMAND

Look at, and change, what ipvswd switches. Commands may be shortened, as `ipvsw l a`.

Commands:
  show [SWITCH]         switches, their ports, their addresses
  stats [SWITCH|PORT]   what became of every frame, by name
  addr [SWITCH|PORT]    the address table
  lease [SWITCH|PORT]   what DHCP servers have leased to whom
  link                  ports as links: show, add, set, delete
  exec PORT -- COMMAND  run a VMM with a port's descriptor
  attach, detach PORT   a port into a running QEMU, and out of it
  reload                read the configuration file again
  completion SHELL      the completion script for bash or zsh

A port whose name is on several switches is written SWITCH/PORT.

{_OPTIONS}
Exit status: 0 done, 1 failed (one line on stderr), 2 not understood.
""",
    "show": """\
usage: ipvsw show [SWITCH] [--json]

Switches with mode, flag, master and state; their ports with namespace, MTU and the offloads
that the kernel granted; their addresses, with what became of each and how it was learned.

States:     up, no-carrier, down, waiting (for a namespace or the master), failed
Addresses:  owned      frames for it go to the port
            down       the port is down: frames for it go to the host
            duplicate  another port of the switch has it
            master     the master has it itself
Learned:    config     the configuration asked for it
            netlink    seen in the port's namespace
            dhcp       a server has leased it to the virtual machine
            dad        the machine asked whether it was free, and took it
            arp, nd    the machine speaks ARP or neighbour discovery in its name
            traffic    the machine sends from it
""",
    "stats": """\
usage: ipvsw stats [SWITCH|PORT] [--all] [--json]

Counters of every switch (the sum of its interfaces), of its master and of its ports. rx is what the
switch read from the device, tx what it wrote to it. Every frame read is in exactly one of the
counters below the line of rx and tx. Counters that are 0 are left out.

  -a, --all   also those that are 0
""",
    "address": """\
usage: ipvsw addr [show] [[dev] SWITCH|PORT] [--json]

The address table: which port has which address, its state and how it was learned.
The words are explained by `ipvsw show --help`.
""",
    "lease": """\
usage: ipvsw lease [list] [[dev] SWITCH|PORT] [--json]

What DHCP servers have leased to the ports' clients, for IPv4 and IPv6: the address, what became of
it (see `ipvsw show --help`; a dash: the port doesn't have it), how long the lease lasts, the
client's MAC address and identifier, the name that it calls itself, and the server.
""",
    "link": """\
usage: ipvsw link [show] ...    ports, as `ip -d link` would print them
       ipvsw link add ...       attach a port
       ipvsw link set ...       change mode or flag of a switch
       ipvsw link delete ...    remove a port

The words are those of ip-link(8). More on each: ipvsw link add --help
""",
    "link show": """\
usage: ipvsw link [show] [[dev] PORT|SWITCH] [--json]

Ports, in the words and the order of `ip -d link`; with --json, with the keys of `ip -d -j link`.
""",
    "link add": """\
usage: ipvsw link add link MASTER [name] NAME [WORDS] type ipvlan|ipvtap [mode MODE] [FLAG]

Attach a port to the switch of MASTER; the switch is made if there is none yet. ipvlan is for a
namespace, ipvtap for a virtual machine.

  netns NS       the namespace to put it in: a name, a path, pid:N or a process's number
                 [the daemon's own]
  ifname IF      the name of the interface inside the namespace [NAME]
  mtu N          bytes, at most the master's [the master's]
  mac WHICH      the MAC address that the endpoint uses: master, or own, which the wire never sees
                 [master; for type ipvtap own]
  address A/LEN  an address to set; may be repeated. Without one the namespace sets its own
  gateway A      the default gateway; may be repeated, once for IPv4 and once for IPv6
  queues N       workers that read the namespace's device; descriptors of a virtual machine [1]
  mode MODE      l2, l3 or l3s. Mode and flag belong to the switch: one that has ports already
  FLAG           bridge, private or vepa            keeps its own, if nothing is said

For type ipvtap, whose addresses are those that the guest has:

  kind KIND      macvtap or tap; where the kernel has no macvtap, a tap is made [macvtap].
                 stream or dgram: a unix socket, for QEMU's netdevs of these names
  learn on|off   find its addresses out from what the guest sends [off]
  max_learned N  at most so many of them [16]
  owner USER     who may open a tap by name, or connect to the path, besides root
  group GROUP    the same
  allow WHO      a user or an @group that may have its descriptor; may be repeated
  path PATH      kind stream: where the daemon listens, or
  connect PATH   where the virtual machine does
  local PATH     kind dgram: where the virtual machine sends to, and
  remote PATH    where it is sent to. Without a path the socket is had by descriptor

Example: ipvsw link add link eth0 name ipvl0 netns ns0 type ipvlan mode l2 private
""",
    "link set": """\
usage: ipvsw link set [dev] PORT|SWITCH type ipvlan [mode MODE] [FLAG]

Change the mode (l2, l3, l3s) or the flag (bridge, private, vepa) of a switch. They belong to the
switch: said of one port, they hold for all ports that share its master.

Example: ipvsw link set ipvl0 type ipvlan mode l2 vepa
""",
    "link delete": """\
usage: ipvsw link delete [dev] PORT

Remove a port. Its interface disappears from its namespace.
""",
    "exec": """\
usage: ipvsw exec PORT -- COMMAND [WORDS]

Run COMMAND with the descriptor of a virtual machine's port. In its words {fd} becomes the number of
the descriptor, {fds} those of a port with several queues, as 3:4, {mac} a MAC address for the guest
(with `mac master` the one it must use), {mtu} the MTU.

Example: ipvsw exec vm1 -- qemu-system-x86_64 -netdev tap,id=n0,fd={fd}
           -device virtio-net-pci,netdev=n0,mac={mac} ...
The descriptor is a TAP's; of kind stream and dgram it is a socket's:
  -netdev stream,id=n0,addr.type=fd,addr.str={fd}
  -netdev dgram,id=n0,local.type=fd,local.str={fd}
""",
    "attach": """\
usage: ipvsw attach PORT --qmp PATH [--device DRIVER] [--id ID] [--mac MAC] [--bus BUS]

Plug a virtual machine's port into a running QEMU. On an error nothing is changed.

  --qmp PATH       its QMP socket
  --device DRIVER  the device that the guest sees [virtio-net-pci]
  --id ID          what it is called in QEMU [ipvsw-PORT]
  --mac MAC        [one made for the port; with `mac master` the master's]
  --bus BUS        where to plug it in; machine q35 needs a pcie-root-port for each device
""",
    "detach": """\
usage: ipvsw detach PORT --qmp PATH [--id ID]

Take a port's device out of a running QEMU. Returns when the guest has let it go.
""",
    "reload": """\
usage: ipvsw reload [--json]

Have the daemon read its configuration file again, do what has changed in it, and print that.
A file with a mistake changes nothing.
""",
    "completion": """\
usage: ipvsw completion bash|zsh

Print the completion script of a shell. For this shell alone:

  bash:  source <(ipvsw completion bash)
  zsh:   source <(ipvsw completion zsh)

For good: write it to /etc/bash_completion.d/ipvsw, or as _ipvsw into a directory of zsh's $fpath.
""",
}
