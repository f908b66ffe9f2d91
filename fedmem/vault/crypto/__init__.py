"""Keys and ciphertext: the container format, keystores, the sealed key table, and the header of a vault."""
