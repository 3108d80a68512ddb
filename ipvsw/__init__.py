"""ipvsw: a userspace IP-VLAN switch."""

__version__ = "0.1.0"
DEFAULT_SOCKET = "/run/ipvsw/api.sock"
LOST = ("drop_", "guard_", "limit_")  # what the names begin with of outcomes in which nobody gets the frame
DEFAULT_STATE = "/var/lib/ipvsw/state.json"
