"""The SDK for apps: `from fedmem import Client`."""
