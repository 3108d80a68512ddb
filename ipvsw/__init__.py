"""ipvsw: a userspace IP-VLAN switch."""

__version__ = "0.1.0"
DEFAULT_SOCKET = "/run/ipvsw/api.sock"
DEFAULT_STATE = "/var/lib/ipvsw/state.json"
