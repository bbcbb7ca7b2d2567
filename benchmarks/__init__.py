"""Measure this client, and this server, against the official client: run `python -m benchmarks`.

`README.md` in this folder says how the numbers are taken, and how far to trust them.
"""
