"""What would become of a frame: the daemon's part of `ipvsw trace`."""
