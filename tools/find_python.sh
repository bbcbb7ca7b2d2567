#!/bin/sh
# Prints the path of the newest CPython on this machine that is 3.11 or later and can make a virtual environment.
# Exits with 1, silently, if there is none.
set -eu

best="" best_minor=0
for candidate in python3.14 python3.13 python3.12 python3.11 python3 /usr/local/bin/python3 /usr/bin/python3; do
    found=$("$candidate" -I -c '
import ctypes, ensurepip, sqlite3, ssl, sys, venv
usable = sys.implementation.name == "cpython" and sys.version_info >= (3, 11) and sys.version_info.releaselevel == "final"
print(sys.version_info.minor if usable else 0, sys.executable)
' 2>/dev/null) || continue
    minor=${found%% *}
    if [ "$minor" -gt "$best_minor" ]; then
        best=${found#* } best_minor=$minor
    fi
done
[ -n "$best" ] && echo "$best"
