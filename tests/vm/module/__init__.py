"""What is done with the kernel module inside a guest: python -m tests.vm.module SCENARIO."""
