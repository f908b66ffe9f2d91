"""Keys and ciphertext: container format, keystores, the sealed key table, the header of a vault."""
