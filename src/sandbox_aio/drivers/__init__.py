"""Drivers on anyio: they move bytes and time between the operating system and the protocol core, and decide nothing."""
