"""ipvsw: a userspace IP-VLAN switch."""

__version__ = "0.1.0"
