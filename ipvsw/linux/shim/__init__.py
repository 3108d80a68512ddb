"""What the shim needs besides its programs and their maps, which `bpf` loads and fills."""
