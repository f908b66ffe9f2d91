"""What an app imports: `from fedmem import Client`."""
