"""How a sandbox is made. `base` is the interface; each runtime lives in a package of its own."""
