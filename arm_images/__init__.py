"""Images as files: find, decode and orient them; lists and archives."""
