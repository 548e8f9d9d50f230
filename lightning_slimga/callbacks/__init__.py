"""When things happen inside a Lightning fit: the callbacks."""
