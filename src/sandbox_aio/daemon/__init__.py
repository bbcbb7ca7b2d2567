"""The daemon: the first process of a sandbox, which runs its commands and serves its files.

`main.run` is the entry. Everything is imported before it is called: inside a sandbox nothing can be imported any more.
"""
