"""`make soak`: mixed load on a real daemon for a while; what it loses, what it gets wrong, what grows."""
