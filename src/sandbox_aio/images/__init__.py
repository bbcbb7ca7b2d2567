"""Images of registries: how they are named, pulled, unpacked into layers, packed again and pushed."""
