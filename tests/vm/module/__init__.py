"""What is done with the kernel module inside a guest: python -m vm.module SCENARIO."""
