"""Frames that the daemon copies for readers: read, filtered, and written as pcapng."""
