"""Features to tagged text, on one thread that owns the device; imports neither serving nor frontend."""
