"""Tests that run in a guest with a kernel of its own, and the live-traffic differential that needs one."""
